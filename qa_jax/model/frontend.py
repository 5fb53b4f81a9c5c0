"""Front end: waveform to log-mel spectrogram, inside the compiled step.

The formula is Whisper's: periodic Hann window of 400 samples every 160, reflected edges, power
spectrum, slaney mel filters, log10, a floor 8 below the clip's maximum, (x + 4) / 4.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.config import HOP_LENGTH, MAX_FRAMES, N_FFT, SAMPLE_RATE
from qa_jax.typing import Array, Float

_BINS = N_FFT // 2 + 1
_HALF = N_FFT // 2
_COARSE_BITS = 7
_WINDOWS_PER_CHUNK = 512


@functools.cache
def mel_filters(num_mel_bins: int) -> Float[np.ndarray, "201 {num_mel_bins}"]:
    """Triangular filters, float32, on the slaney scale (linear below 1 kHz, logarithmic above) with
    slaney area normalization; equal to ``librosa.filters.mel(...).T``."""
    knee_hz, knee_mel, log_step = 1000.0, 15.0, np.log(6.4) / 27.0
    top = knee_mel + np.log(SAMPLE_RATE / 2 / knee_hz) / log_step
    mels = np.linspace(0.0, top, num_mel_bins + 2)
    hz = np.where(
        mels < knee_mel, mels * (200.0 / 3), knee_hz * np.exp(log_step * (mels - knee_mel))
    )
    bins = np.linspace(0.0, SAMPLE_RATE / 2, _BINS)
    distance = hz[:, None] - bins
    width = np.diff(hz)[:, None]
    rising, falling = -distance[:-2] / width[:-1], distance[2:] / width[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    return (filters * (2.0 / (hz[2:] - hz[:-2]))[:, None]).T.astype(np.float32)


@functools.cache
def _dft_basis() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Windowed cosines (samples 1..200) and sines (1..199) of the Fourier transform, each split
    into a coarse part on a grid of 2^-7 and the factors of the fine products."""
    n, k = np.arange(1, _HALF + 1)[:, None], np.arange(_BINS)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / N_FFT)
    angle = 2 * np.pi * n * k / N_FFT
    split = []
    for factor in (window * np.cos(angle), (window * np.sin(angle))[:-1]):
        coarse = np.round(factor * 2**_COARSE_BITS) / 2**_COARSE_BITS
        fine = np.concatenate([factor - coarse, factor])
        split.append((coarse.astype(np.float32), fine.astype(np.float32)))
    return tuple(split)


def _windows(x: Float[Array, "*rest S"], num_frames: int) -> Float[Array, "*rest F 400"]:
    """Windows of 400 samples every 160, of waveforms padded by 200 samples at either end."""
    # A window is 5 blocks of 80 samples and a hop is 2, so frames are slices without a gather.
    block = HOP_LENGTH // 2
    pad = [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % block)]
    blocks = jnp.pad(x, pad).reshape(*x.shape[:-1], -1, block)
    return jnp.concatenate([blocks[..., i : i + 2 * num_frames : 2, :] for i in range(5)], axis=-1)


def _pad_edges(x: Float[Array, "*rest S"]) -> Float[Array, "*rest S+400"]:
    """Adds the 200 samples by which the first and the last window extend past the ends."""
    rest = [(0, 0)] * (x.ndim - 1)
    x = jnp.pad(x, [*rest, (_HALF, 0)], mode="reflect")
    # A shorter waveform is implicitly zero-padded to 30 s; a full one is reflected at its end.
    full = x.shape[-1] - _HALF >= MAX_FRAMES * HOP_LENGTH
    return jnp.pad(x, [*rest, (0, _HALF)], mode="reflect" if full else "constant")


def power_spectrum_matmul(waveform: Float[Array, "B S"]) -> Float[Array, "B F 201"]:
    """Power spectrum by matrix products in float32, for accelerators.

    A plain float32 transform is up to 6e-5 off in a log-mel, because the log amplifies errors in
    bins 80 dB below the loudest. So the waveform is split into a coarse part of 7 bits and the
    rest: the products of coarse samples with the coarse basis are integers below 2^24, which
    float32 adds without error, and all other products, with their errors, are 2^-7 smaller. Matrix
    products rather than an FFT, since 400 is not a power of two and TPUs have matrix units.
    """
    num_frames = waveform.shape[1] // HOP_LENGTH
    peak = jnp.max(jnp.abs(waveform), axis=1, keepdims=True)
    grid = jnp.exp2(jnp.ceil(jnp.log2(jnp.maximum(peak, 1e-30))) - _COARSE_BITS)
    coarse = jnp.round(waveform / grid) * grid
    windows = _windows(_pad_edges(jnp.stack([coarse, waveform - coarse])), num_frames)
    # The window is 0 at sample 0 and symmetric about 200, so each cosine multiplies
    # x[n] + x[400 - n] and each sine x[n] - x[400 - n]: half the products.
    left, mirrored = windows[..., 1:_HALF], windows[..., :_HALF:-1]
    even = jnp.concatenate([left + mirrored, windows[..., _HALF : _HALF + 1]], axis=-1)
    power = jnp.zeros((), jnp.float32)
    for (coarse_part, rest), (basis, fine_basis) in zip(
        (even, left - mirrored), _dft_basis(), strict=True
    ):
        both = jnp.concatenate([coarse_part, rest], axis=-1)
        component = _matmul(coarse_part, basis) + _matmul(both, fine_basis)
        power = power + component * component
    return power


def power_spectrum_fft(waveform: Float[Array, "B S"]) -> Float[Array, "B F 201"]:
    """Power spectrum by an FFT in float64, which CPUs support and TPUs do not."""
    windows = _windows(_pad_edges(waveform), waveform.shape[1] // HOP_LENGTH)

    def power(window: jax.Array) -> jax.Array:
        with jax.enable_x64(True):  # for these operations alone, whatever the caller's setting
            # Computed here: a float64 constant would become part of other platforms' programs.
            hann = 0.5 - 0.5 * jnp.cos(2 * np.pi / N_FFT * jnp.arange(N_FFT, dtype=jnp.float64))
            spectrum = jnp.fft.rfft(window.astype(jnp.float64) * hann)
            return (spectrum.real**2 + spectrum.imag**2).astype(jnp.float32)

    # A chunk of windows fits in the cache: four times as fast for 30 s.
    flat = jax.lax.map(power, windows.reshape(-1, N_FFT), batch_size=_WINDOWS_PER_CHUNK)
    return flat.reshape(*windows.shape[:2], _BINS)


def log_mel_from_power(
    power: Float[Array, "B F 201"], num_mel_bins: int
) -> Float[Array, "B F {num_mel_bins}"]:
    """Log-mel of a power spectrum."""
    mel = _matmul(power, mel_filters(num_mel_bins))
    log_mel = jnp.log10(jnp.maximum(mel, 1e-10))
    floor = jnp.max(log_mel, axis=(1, 2), keepdims=True) - 8.0
    return (jnp.maximum(log_mel, floor) + 4.0) / 4.0


def _matmul(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


class LogMel:
    """The front end of the model, without parameters.

    Args:
        num_mel_bins: mel filters, 80 or 128 in released models.
    """

    def __init__(self, num_mel_bins: int) -> None:
        self.num_mel_bins = num_mel_bins

    def __call__(self, waveform: Float[Array, "B S"]) -> Float[Array, "B F M"]:
        """Log-mel of zero-padded clips, equal to that of the same clips padded to 30 s.

        Args:
            waveform: float32 at 16 kHz; S a multiple of 160, at least 320 and at most 480,000.

        Returns:
            float32, F = S / 160.

        Raises:
            ValueError: for another number of samples.
        """
        num_samples = waveform.shape[1]
        if num_samples % HOP_LENGTH or not 2 * HOP_LENGTH <= num_samples <= MAX_FRAMES * HOP_LENGTH:
            raise ValueError(
                f"waveform of {num_samples} samples: need a multiple of 160 up to 480,000"
            )
        with jax.named_scope("log_mel"):
            power = jax.lax.platform_dependent(
                waveform.astype(jnp.float32), cpu=power_spectrum_fft, default=power_spectrum_matmul
            )
            return log_mel_from_power(power, self.num_mel_bins)
