"""Constants of the log-mel front end, and the lengths that follow from a number of samples."""

from __future__ import annotations

from typing import TypeVar

SAMPLE_RATE = 16_000
"""Input sample rate in Hz."""
HOP_LENGTH = 160
"""Samples between log-mel frames: 10 ms."""
N_FFT = 400
"""Samples in an analysis window: 25 ms."""
MAX_FRAMES = 3_000
"""Log-mel frames in the reference's 30 s window."""
FRAME_MARGIN = 4
"""Frames encoded past a clip's end, so that the convolutions give the values of a 30 s window (two
are enough; four keep the pooled length whole)."""

IntOrArray = TypeVar("IntOrArray")
"""An int, or an integer array of NumPy or JAX."""


def num_frames(num_samples: IntOrArray) -> IntOrArray:
    """Log-mel frames of a clip of so many samples: ceil(samples / 160)."""
    return -(-num_samples // HOP_LENGTH)  # type: ignore


def conv_length(num_frames: IntOrArray) -> IntOrArray:
    """Encoder positions after the stride-2 convolution: ceil(frames / 2)."""
    return (num_frames + 1) // 2  # type: ignore


def num_audio_tokens(num_frames: IntOrArray) -> IntOrArray:
    """Audio tokens of a clip of so many frames: encoder positions pooled by 2."""
    return conv_length(num_frames) // 2  # type: ignore
