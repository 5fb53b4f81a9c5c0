"""Loading, chatting, default settings, dtypes and meshes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import qa_jax
from qa_jax.config import SamplingConfig, from_generation_config
from qa_jax.errors import InputError
from tests.conftest import make_waveform
from tests.generate.batches import batch_of


def test_chat(model: qa_jax.LoadedModel) -> None:
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": (make_waveform(0.5), 16_000)}]}
    ]
    output = model.chat(messages, max_new_tokens=5)
    assert isinstance(output, str)
    assert "".join(model.chat(messages, stream=True, max_new_tokens=5)) == output


def test_generation_config_is_used(tiny_checkpoint: Path, tmp_path: Path) -> None:
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


def test_default_stop_ids(model: qa_jax.LoadedModel) -> None:
    tokenizer = model.processor.tokenizer
    ends = (tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|endoftext|>"))
    assert model.default_sampling.stop_ids == ends and model.default_sampling.temperature == 0


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
def test_bad_settings_are_refused(model: qa_jax.LoadedModel, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(batch_of(model, [2]), **settings)


def test_loading_in_other_dtypes(tiny_checkpoint: Path, model: qa_jax.LoadedModel) -> None:
    half = qa_jax.load(tiny_checkpoint, dtype="bfloat16")
    batch = batch_of(model, [0])
    exact, rounded = model.logits(batch), half.logits(batch)
    assert rounded.dtype == exact.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()
    assert qa_jax.load(tiny_checkpoint, dtype=None).config.dtype == "float32"
    with pytest.raises(InputError, match="JAX_ENABLE_X64"):
        qa_jax.load(tiny_checkpoint, dtype="float64")
    with pytest.raises(InputError, match="neither"):
        qa_jax.load(tiny_checkpoint.parent)


def test_mesh_equals_one_device(tiny_checkpoint: Path, model: qa_jax.LoadedModel) -> None:
    from qa_jax.config import MeshConfig
    from qa_jax.parallel import make_mesh

    spread = qa_jax.load(tiny_checkpoint, mesh=make_mesh(MeshConfig(2, 2, 2)))
    settings = dict(max_new_tokens=10, stop_ids=())
    batch = batch_of(model, [0, 1, 2])
    np.testing.assert_allclose(
        np.where(batch["attention_mask"][..., None] == 1, spread.logits(batch), 0),
        np.where(batch["attention_mask"][..., None] == 1, model.logits(batch), 0),
        atol=1e-4,
    )
    assert spread.generate(batch, **settings) == model.generate(batch, **settings)
