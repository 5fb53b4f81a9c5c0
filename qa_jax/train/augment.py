"""Augmentation inside the compiled step: shifts, noise, telephones, gain, and SpecAugment.

Each clip's draws come from its own key, so that its row, its batch and the mesh change nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.config import HOP_LENGTH, SAMPLE_RATE, AugmentConfig
from qa_jax.data import TrainBatch
from qa_jax.model.frontend import LogMel
from qa_jax.typing import Array, Bool, Float, Int, Key, UInt32

_TELEPHONE_HZ = (300.0, 3_400.0)
_PINK_KNEE_HZ = 400.0


def augment_batch(config: AugmentConfig, log_mel: LogMel, batch: TrainBatch) -> TrainBatch:
    """A micro-batch with log-mels of changed clips in place of its waveforms; the same batch if it
    has no seeds."""
    if batch.augment_seeds is None or batch.waveform is None or batch.num_frames is None:
        return batch
    with jax.named_scope("augment"):
        waveform = augment_waveform(config, batch.waveform, batch.num_frames, batch.augment_seeds)
        features = log_mel(waveform)
        features = mask_log_mel(config, features, batch.num_frames, batch.augment_seeds)
    return batch._replace(waveform=features, augment_seeds=None)


def augment_waveform(
    config: AugmentConfig,
    waveform: Float[Array, "A S"],
    num_frames: Int[Array, " A"],
    seeds: UInt32[Array, "A 2"],
) -> Float[Array, "A S"]:
    """Clips with all changes that are made before the log-mel.

    Args:
        config: what is drawn.
        waveform: zero-padded, S a multiple of 160.
        num_frames: of each clip.
        seeds: a key for each clip.
    """
    shift, noise, telephone, gain = jnp.moveaxis(_keys(seeds, 4), 1, 0)
    is_clip = jnp.arange(waveform.shape[1]) < num_frames[:, None] * HOP_LENGTH
    x = waveform
    if config.time_shift:
        x = _shift(x, shift, int(config.time_shift * SAMPLE_RATE))
    if config.noise_prob:
        x = _add_noise(config, x, is_clip, noise)
    if config.telephone_prob:
        has_line = _uniform(telephone, 0, 1) < config.telephone_prob
        x = jnp.where(has_line[:, None], fir_filter(x, _band_pass(*_TELEPHONE_HZ)), x)
    x *= 10 ** (_uniform(gain, *config.gain_db) / 20)[:, None]
    return jnp.where(is_clip, x, 0)


def mask_log_mel(
    config: AugmentConfig,
    log_mel: Float[Array, "A F M"],
    num_frames: Int[Array, " A"],
    seeds: UInt32[Array, "A 2"],
) -> Float[Array, "A F M"]:
    """SpecAugment (Park et al. 2019) without warping: stretches and bands become the mean."""
    num_bins = log_mel.shape[-1]
    is_clip = jnp.arange(log_mel.shape[1]) < num_frames[:, None]
    keys = _keys(seeds, 6)[:, 4:]
    widest = jnp.minimum(config.time_mask_frames, num_frames // 5)
    stretches = _draw_masks(keys[:, 0], config.time_masks, widest, num_frames, log_mel.shape[1])
    bins = jnp.full_like(num_frames, num_bins)
    widest = jnp.minimum(config.freq_mask_bins, bins)
    bands = _draw_masks(keys[:, 1], config.freq_masks, widest, bins, num_bins)
    total = jnp.sum(log_mel * is_clip[..., None], axis=(1, 2), keepdims=True)
    mean = total / (num_bins * jnp.maximum(num_frames, 1))[:, None, None]
    is_masked = (stretches[:, :, None] | bands[:, None]) & is_clip[..., None]
    return jnp.where(is_masked, mean, log_mel)


def _keys(seeds: UInt32[Array, "A 2"], count: int) -> Key[Array, "A {count}"]:
    def of_clip(seed: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))

    return jax.vmap(of_clip)(seeds)


def _uniform(keys: Key[Array, " A"], low: float, high: float) -> Float[Array, " A"]:
    return jax.vmap(lambda key: jax.random.uniform(key, (), minval=low, maxval=high))(keys)


def _shift(x: Float[Array, "A S"], keys: Key[Array, " A"], most: int) -> Float[Array, "A S"]:
    """Clips later or earlier by up to `most` samples."""
    start = jax.vmap(lambda key: jax.random.randint(key, (), 0, 2 * most + 1))(keys)
    padded = jnp.pad(x, ((0, 0), (most, most)))
    return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, x.shape[1]))(
        padded, start
    )


def _add_noise(
    config: AugmentConfig,
    x: Float[Array, "A S"],
    is_clip: Bool[Array, "A S"],
    keys: Key[Array, " A"],
) -> Float[Array, "A S"]:
    """Noise, part of it below a drawn colour's knee, at a drawn ratio to the clip."""
    samples, has_noise, colour, ratio = jnp.moveaxis(
        jax.vmap(lambda key: jax.random.split(key, 4))(keys), 1, 0
    )
    white = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(samples)
    low = 4 * fir_filter(white, _band_pass(0, _PINK_KNEE_HZ))
    part = _uniform(colour, 0, 1)[:, None]
    noise = jnp.where(is_clip, (1 - part) * white + part * low, 0)
    power = jnp.sum(jnp.square(x), axis=1) / jnp.maximum(jnp.sum(jnp.square(noise), axis=1), 1e-8)
    level = jnp.sqrt(power) * 10 ** (-_uniform(ratio, *config.noise_snr_db) / 20)
    is_noisy = _uniform(has_noise, 0, 1) < config.noise_prob
    return x + jnp.where(is_noisy, level, 0)[:, None] * noise


def fir_filter(x: Float[Array, "A S"], taps: Float[np.ndarray, " K"]) -> Float[Array, "A S"]:
    """Clips filtered without delay by an odd number of taps, at most 319; S a multiple of 160.

    A matrix product for each block of 160 samples and its neighbours, since TPUs have no fast
    convolution of one channel.
    """
    block = HOP_LENGTH
    distance = np.arange(3 * block)[:, None] - block - np.arange(block) + taps.size // 2
    is_tap = (distance >= 0) & (distance < taps.size)
    matrix = np.where(is_tap, taps[::-1][np.clip(distance, 0, taps.size - 1)], 0)
    blocks = jnp.pad(x.reshape(len(x), -1, block), ((0, 0), (1, 1), (0, 0)))
    near = jnp.concatenate([blocks[:, :-2], blocks[:, 1:-1], blocks[:, 2:]], axis=-1)
    return (near @ matrix.astype(np.float32)).reshape(x.shape)


def _band_pass(low_hz: float, high_hz: float) -> Float[np.ndarray, " 161"]:
    """A Hamming-windowed ideal band pass."""
    n = np.arange(-80, 81)

    def low_pass(hz: float) -> np.ndarray:
        return 2 * hz / SAMPLE_RATE * np.sinc(2 * hz / SAMPLE_RATE * n)

    return (low_pass(high_hz) - low_pass(low_hz)) * np.hamming(n.size)


def _draw_masks(
    keys: Key[Array, " A"],
    count: int,
    widest: Int[Array, " A"],
    length: Int[Array, " A"],
    size: int,
) -> Bool[Array, "A size"]:
    """Whether each place is in one of `count` stretches of up to `widest` within `length`."""

    def of_clip(key: jax.Array, widest: jax.Array, length: jax.Array) -> jax.Array:
        for_width, for_start = jax.random.split(key)
        width = jax.random.randint(for_width, (count, 1), 0, widest + 1)
        start = jax.random.randint(for_start, (count, 1), 0, jnp.maximum(length - width, 0) + 1)
        at = jnp.arange(size)
        return jnp.any((at >= start) & (at < start + width), axis=0)

    return jax.vmap(of_clip)(keys, widest, length)
