"""Augmentation of training clips."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training clips; all are off by default, and none is made in evaluation.

    What is drawn for a clip is a function of `data.seed`, the epoch and the record. The changes
    are listed in the order in which they are made: down to `codecs` by the threads that read audio,
    the others inside the compiled step. Ranges are [lowest, highest].

    Attributes:
        speed: factors by which a clip is played faster, pitch and resonances included: another
            speaker. Batches are planned for the slowest.
        pitch: semitones by which it is transposed at the same speed.
        reverb_prob: fraction of clips that are heard in a room.
        impulse_responses: the rooms': audio files, a directory or a pattern, or a manifest; empty
            for decaying noise with a reverberation time of 0.1 to 0.6 s.
        background_prob: fraction of clips with a background.
        background: recordings of it, named likewise; empty for babble: three other records' clips.
        background_snr_db: their signal-to-noise ratios.
        codec_prob: fraction of clips that are encoded and decoded once.
        codecs: of "mulaw" and "gsm" at 8 kHz, "mp3" and "opus".
        time_shift: seconds by which a clip may move within its length; what leaves it is lost.
        noise_prob: fraction of clips with noise between white and pink.
        noise_snr_db: their signal-to-noise ratios.
        telephone_prob: fraction of clips of which a telephone leaves 300 to 3,400 Hz.
        gain_db: changes of level.
        time_masks: stretches of the log-mel that are set to its mean (SpecAugment).
        time_mask_frames: frames (10 ms) of the longest; at most a fifth of a clip.
        freq_masks: bands of it that are set to its mean.
        freq_mask_bins: mel bins of the widest.
    """

    speed: tuple[float, float] = (1.0, 1.0)
    pitch: tuple[float, float] = (0.0, 0.0)
    reverb_prob: float = 0.0
    impulse_responses: str = ""
    background_prob: float = 0.0
    background: str = ""
    background_snr_db: tuple[float, float] = (5.0, 20.0)
    codec_prob: float = 0.0
    codecs: tuple[str, ...] = ("mulaw", "gsm", "mp3", "opus")
    time_shift: float = 0.0
    noise_prob: float = 0.0
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    telephone_prob: float = 0.0
    gain_db: tuple[float, float] = (0.0, 0.0)
    time_masks: int = 0
    time_mask_frames: int = 20
    freq_masks: int = 0
    freq_mask_bins: int = 10

    @property
    def reads_differently(self) -> bool:
        """Whether clips change as they are read."""
        ranges = tuple(self.speed) != (1.0, 1.0) or tuple(self.pitch) != (0.0, 0.0)
        return ranges or bool(self.reverb_prob or self.background_prob or self.codec_prob)

    @property
    def changes_step(self) -> bool:
        """Whether the compiled step changes clips."""
        return bool(
            self.time_shift
            or self.noise_prob
            or self.telephone_prob
            or tuple(self.gain_db) != (0.0, 0.0)
            or self.time_masks
            or self.freq_masks
        )
