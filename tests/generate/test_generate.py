"""Answers: alike alone and in a batch, streamed or not, chosen as each knob says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qa_jax
from qa_jax.config import SamplingConfig, from_generation_config
from qa_jax.errors import InputError
from qa_jax.generate.sampling import apply_temperature_top_k_top_p, sample_token
from tests.conftest import sound

CLIP = "<|audio_bos|><|AUDIO|><|audio_eos|>"


@pytest.fixture(scope="module")
def qa(tiny_checkpoint: Path) -> qa_jax.LoadedModel:
    return qa_jax.load(tiny_checkpoint)


PROMPTS = [
    (f"{CLIP}what is three", [0.5]),
    (f"{CLIP}{CLIP}turn on the light in the kitchen", [1.7, 0.3]),
    ("no sound at all", []),
]


def batch_of(qa: qa_jax.LoadedModel, rows: list[int]) -> dict:
    clips = [(sound(s, 7 * i), 16_000) for i in rows for s in PROMPTS[i][1]]
    return qa.processor([PROMPTS[i][0] for i in rows], clips)


def test_rows_answer_as_they_would_alone(qa: qa_jax.LoadedModel) -> None:
    settings = dict(max_new_tokens=40, temperature=0.0, repetition_penalty=1.3, stop_ids=())
    together = qa.generate(batch_of(qa, [0, 1, 2]), **settings)
    assert [len(ids) for ids in together] == [40] * 3
    for i in range(3):
        assert qa.generate(batch_of(qa, [i]), **settings) == [together[i]]


def test_greedy_answers_follow_the_logits(qa: qa_jax.LoadedModel) -> None:
    """Each token is the likeliest after all before it, recomputed without a cache."""
    batch = batch_of(qa, [0])
    ids = qa.generate(batch, max_new_tokens=6, temperature=0.0, stop_ids=())[0]
    for i, token in enumerate(ids):
        longer = dict(batch)
        longer["input_ids"] = np.concatenate([batch["input_ids"], [ids[:i]]], 1).astype(np.int32)
        longer["attention_mask"] = np.ones_like(longer["input_ids"])
        assert int(qa.logits(longer)[0, -1].argmax()) == token


def test_streaming_gives_the_same(qa: qa_jax.LoadedModel) -> None:
    batch, settings = batch_of(qa, [1]), dict(max_new_tokens=12, repetition_penalty=1.2)
    said = qa.answer(batch, **settings)
    pieces = list(qa.answer(batch, stream=True, **settings))
    assert "".join(pieces) == said and len(pieces) > 1


def test_stopping(qa: qa_jax.LoadedModel) -> None:
    batch = batch_of(qa, [0, 1])
    free = qa.generate(batch, max_new_tokens=10, repetition_penalty=1.5, stop_ids=())
    stop = free[0][4]
    stopped = qa.generate(batch, max_new_tokens=10, repetition_penalty=1.5, stop_ids=(stop,))
    assert stopped[0] == free[0][: free[0].index(stop) + 1]
    longer = qa.generate(
        batch, max_new_tokens=10, repetition_penalty=1.5, stop_ids=(stop,), min_new_tokens=8
    )
    assert len(longer[0]) >= 8 and stop not in longer[0][:7]


def test_sampling_repeats_with_its_seed(qa: qa_jax.LoadedModel) -> None:
    batch = batch_of(qa, [0, 1])
    settings = dict(max_new_tokens=12, temperature=1.5, stop_ids=())
    first = qa.generate(batch, **settings, seed=1)
    assert first == qa.generate(batch, **settings, seed=1)
    assert first != qa.generate(batch, **settings, seed=2)


def test_chat(qa: qa_jax.LoadedModel) -> None:
    messages = [{"role": "user", "content": [{"type": "audio", "audio": (sound(0.5), 16_000)}]}]
    said = qa.chat(messages, max_new_tokens=5)
    assert isinstance(said, str)
    assert "".join(qa.chat(messages, stream=True, max_new_tokens=5)) == said


def test_top_k_and_top_p() -> None:
    logits = jnp.log(jnp.array([[0.5, 0.2, 0.15, 0.1, 0.05]]))

    def kept(**settings: float) -> list[bool]:
        sampling = SamplingConfig(temperature=1.0, **settings)  # type: ignore[arg-type]
        return np.isfinite(apply_temperature_top_k_top_p(logits, sampling))[0].tolist()

    assert kept(top_k=2) == [True, True, False, False, False]
    assert kept(top_p=0.69) == [True, True, False, False, False]
    assert kept(top_p=0.71) == [True, True, True, False, False]
    assert kept(top_p=1e-6) == [True, False, False, False, False]
    np.testing.assert_allclose(
        apply_temperature_top_k_top_p(logits, SamplingConfig(temperature=2.0)), logits / 2
    )


def test_sampling_draws_by_probability() -> None:
    logits = jnp.log(jnp.array([[0.6, 0.3, 0.1]]))
    keys = jax.random.split(jax.random.key(0), 4000)
    how = SamplingConfig(temperature=1.0)
    drawn = sample_token(jnp.repeat(logits, 4000, 0), None, jnp.int32(0), keys, how)
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.6, 0.3, 0.1], atol=0.03)


def test_repetition_penalty_is_transformers() -> None:
    logits = jnp.array([[2.0, -1.0, 1.9]])
    seen = jnp.array([[True, True, False]])
    how = SamplingConfig(repetition_penalty=1.25)
    assert int(sample_token(logits, seen, jnp.int32(0), jnp.zeros(1), how)[0]) == 2
    assert int(sample_token(logits, seen & False, jnp.int32(0), jnp.zeros(1), how)[0]) == 0


def test_generation_config_is_honoured(tiny_checkpoint: Path, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, directory)
    raw = {
        "do_sample": True, "top_k": 20, "top_p": 0.5, "temperature": 0.7,
        "repetition_penalty": 1.1, "eos_token_id": [2, 3], "max_new_tokens": 7,
    }  # fmt: skip
    (directory / "generation_config.json").write_text(json.dumps(raw))
    assert qa_jax.load(directory).default_sampling == SamplingConfig(
        7, 0, 0.7, 20, 0.5, 1.1, (2, 3)
    )
    assert from_generation_config({**raw, "do_sample": False}).get("temperature") is None
    assert from_generation_config({"do_sample": True})["top_k"] == 50


def test_without_generation_config_turns_end(qa: qa_jax.LoadedModel) -> None:
    tokenizer = qa.processor.tokenizer
    ends = (tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|endoftext|>"))
    assert qa.default_sampling.stop_ids == ends and qa.default_sampling.temperature == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(top_p=0.0), "top_p: 0.0 is out of range"),
        (dict(temperature=-1), "temperature: -1 is out of range"),
        (dict(max_new_tokens=0), "max_new_tokens"),
        (dict(max_tokens=5), "max_tokens: no such generation setting"),
        (dict(max_new_tokens=5000), "positions, the model has 1024"),
    ],
)
def test_bad_settings_are_refused(qa: qa_jax.LoadedModel, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        qa.generate(batch_of(qa, [2]), **settings)


def test_batches_that_do_not_fit_are_refused(qa: qa_jax.LoadedModel) -> None:
    batch = batch_of(qa, [0])
    with pytest.raises(InputError, match="do not match: tokens: 12, features: 25"):
        qa.logits({**batch, "audio": np.zeros((1, 16_000)), "audio_lengths": np.array([16_000])})
    with pytest.raises(InputError, match="unknown keys"):
        qa.logits({**batch, "audios": 1})
    with pytest.raises(InputError, match="has no input_ids"):
        qa.logits({})


def test_loading_in_other_types(tiny_checkpoint: Path, qa: qa_jax.LoadedModel) -> None:
    half = qa_jax.load(tiny_checkpoint, dtype="bfloat16")
    batch = batch_of(qa, [0])
    exact, rounded = qa.logits(batch), half.logits(batch)
    assert rounded.dtype == exact.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()
    assert qa_jax.load(tiny_checkpoint, dtype=None).config.dtype == "float32"
    with pytest.raises(InputError, match="JAX_ENABLE_X64"):
        qa_jax.load(tiny_checkpoint, dtype="float64")
    with pytest.raises(InputError, match="neither"):
        qa_jax.load(tiny_checkpoint.parent)


def test_a_mesh_gives_the_same(tiny_checkpoint: Path, qa: qa_jax.LoadedModel) -> None:
    from qa_jax.config import MeshConfig
    from qa_jax.parallel import make_mesh

    spread = qa_jax.load(tiny_checkpoint, mesh=make_mesh(MeshConfig(2, 2, 2)))
    settings = dict(max_new_tokens=10, stop_ids=())
    batch = batch_of(qa, [0, 1, 2])
    np.testing.assert_allclose(
        np.where(batch["attention_mask"][..., None] == 1, spread.logits(batch), 0),
        np.where(batch["attention_mask"][..., None] == 1, qa.logits(batch), 0),
        atol=1e-4,
    )
    assert spread.generate(batch, **settings) == qa.generate(batch, **settings)
