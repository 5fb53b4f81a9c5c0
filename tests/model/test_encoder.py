"""A bucket is encoded as 30 s would be, exactly, and only because of the mask and the margin."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import AudioConfig, conv_length, num_audio_tokens, num_frames
from qa_jax.model import AudioEncoder, bind, initialize
from qa_jax.model.encoder import gelu

CONFIG = AudioConfig(
    num_mel_bins=80, d_model=16, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=24
)


@pytest.fixture(scope="module")
def in_float64():  # type: ignore[no-untyped-def]
    with jax.enable_x64(True):
        model = AudioEncoder(CONFIG)
        params = initialize(model, jax.random.key(0), jnp.float64)
        # Fresh layers hardly attend; these do, so that what they must not see would show.
        params["layers"] = jax.tree.map(lambda p: 10 * p, params["layers"])
        log_mel = np.random.default_rng(0).standard_normal((3, 3000, 80))
        encode = jax.jit(lambda mel, frames: bind(model)(params)(mel, frames))
        yield encode, log_mel


def test_bucket_equals_thirty_seconds(in_float64) -> None:  # type: ignore[no-untyped-def]
    encode, log_mel = in_float64
    frames = np.array([404, 37, 201])
    whole = np.asarray(encode(log_mel, frames))
    bucket = np.asarray(encode(log_mel[:, :408], frames))
    assert whole.dtype == np.float64
    for i, n in enumerate(num_audio_tokens(frames)):
        assert np.abs(whole[i, :n] - bucket[i, :n]).max() < 1e-12


def test_one_frame_less_breaks_it(in_float64) -> None:  # type: ignore[no-untyped-def]
    encode, log_mel = in_float64
    frames = np.array([404] * 3)
    whole = np.asarray(encode(log_mel, frames))[:, :101]
    without_margin = np.asarray(encode(log_mel[:, :404], frames))
    assert np.abs(whole - without_margin).max() > 1e-3


def test_no_mask_breaks_it(in_float64) -> None:  # type: ignore[no-untyped-def]
    encode, log_mel = in_float64
    whole = np.asarray(encode(log_mel, np.array([404] * 3)))[:, :101]
    unmasked = np.asarray(encode(log_mel[:, :408], np.array([408] * 3)))[:, :101]
    assert np.abs(whole - unmasked).max() > 1e-3


def test_whole_tiles_change_nothing(in_float64, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """On TPUs every layer runs over a multiple of 128 positions, here 256 instead of 204."""
    encode, log_mel = in_float64
    frames = np.array([404, 37, 201])
    here = encode(log_mel[:, :408], frames)
    for module in ("encoder", "layers"):
        monkeypatch.setattr(f"qa_jax.model.{module}.current_platform", lambda: "tpu")
    tiled = jax.jit(lambda *inputs: encode.__wrapped__(*inputs))  # another function: traced again
    assert "256,16" in str(jax.make_jaxpr(tiled)(log_mel[:, :408], frames))
    np.testing.assert_allclose(tiled(log_mel[:, :408], frames), here, atol=1e-12)


def test_gelu_is_exact_in_the_tails() -> None:
    x = np.linspace(-8, 8, 101)[None, None]
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x[0, 0]])
    with jax.enable_x64(True):
        np.testing.assert_allclose(gelu(jnp.asarray(x))[0, 0], exact, atol=1e-14)
    narrow = gelu(jnp.asarray(x, jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    wide = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in wide[0, 0]])
    # One rounding to bfloat16, of values that float32 has to 1e-6.
    np.testing.assert_allclose(np.asarray(narrow, np.float64)[0, 0], exact, rtol=2**-8, atol=2e-6)


def test_a_filler_clip_is_finite(in_float64) -> None:  # type: ignore[no-untyped-def]
    encode, log_mel = in_float64
    assert np.isfinite(np.asarray(encode(log_mel[:, :40], np.zeros(3, int)))).all()


@pytest.mark.parametrize(
    ("samples", "tokens"),
    [(1, 0), (320, 0), (321, 1), (1600, 2), (16_000, 25), (64_640, 101), (93_680, 146),
     (479_841, 750), (480_000, 750)],
)  # fmt: skip
def test_token_counts(samples: int, tokens: int) -> None:
    assert num_audio_tokens(num_frames(samples)) == tokens


def test_lengths_follow_the_reference_formulas() -> None:
    frames = np.arange(1, 3001)
    assert (conv_length(frames) == (frames - 1) // 2 + 1).all()
    assert (num_audio_tokens(frames) == ((frames - 1) // 2 + 1 - 2) // 2 + 1).all()


def test_bad_lengths_are_refused() -> None:
    encoder = AudioEncoder(CONFIG)
    for frames in (42, 3004):
        with pytest.raises(ValueError, match="multiple of 4"):
            encoder(jnp.zeros((1, frames, 80)), jnp.array([4]))
