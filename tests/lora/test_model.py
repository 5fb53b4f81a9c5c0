"""Dtypes of the frozen base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import qa_jax
from qa_jax.config import LoraConfig, RunConfig
from qa_jax.lora import add_lora
from qa_jax.model import Qwen2Audio, bind, cast_to_param_dtypes
from qa_jax.train import train
from tests.runs import config, losses

pytestmark = pytest.mark.usefixtures("one_device")


DECODER = '--lora.target_modules=["decoder/.*_proj", "projector"]'


def lora(settings: dict, init: Path, *more: str) -> RunConfig:
    chosen = [DECODER, "--lora.rank=4", "--lora.base_dtype=float32", f"--train.init_from={init}"]
    return config(settings, *chosen, *more)


@pytest.mark.parametrize("base", ["bfloat16", "int8"])
def test_base_dtypes(base: Any, settings: dict, tiny_checkpoint: Path) -> None:
    """In fewer bits it answers nearly as before, and the adapters still learn."""
    loaded = qa_jax.load(tiny_checkpoint)
    model = Qwen2Audio(loaded.config)
    add_lora(model, LoraConfig(base_dtype=base), adapters=False)
    cast = cast_to_param_dtypes(model, loaded.params)
    kernel = cast["decoder"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.dtype == base and cast["decoder"]["embed_tokens"].dtype == jnp.bfloat16
    ids = jnp.arange(30).reshape(2, 15)
    plain, other = bind(Qwen2Audio(loaded.config))(loaded.params), bind(model)(cast)
    expected = plain(ids, jnp.ones_like(ids))[0]
    error = np.abs(other(ids, jnp.ones_like(ids))[0] - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.03
    if base == "bfloat16":
        return
    more = ("--train.steps=12", "--optimizer.peak_lr=3e-2", f"--lora.base_dtype={base}")
    train(lora(settings, tiny_checkpoint, *more))
    curve = losses(settings["train"]["output_dir"])
    assert np.mean(curve[-3:]) < np.mean(curve[:3])
