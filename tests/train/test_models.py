"""Training LoRA adapters: what is trained, saved, resumed and computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qa_jax
from qa_jax import checkpoint
from qa_jax.checkpoint.reader import step_metadata
from qa_jax.config import LoraConfig, MeshConfig, RunConfig, preset
from qa_jax.errors import InputError
from qa_jax.lora import add_lora, merge_lora
from qa_jax.model import Qwen2Audio, bind
from qa_jax.parallel import make_mesh
from qa_jax.plan.estimate import Shapes, executed_flops
from qa_jax.plan.plan import lower_step
from qa_jax.train import train
from qa_jax.train.run import make_models
from qa_jax.trees import merge_trees
from tests.conftest import make_waveform
from tests.runs import config, losses, stopping_after

pytestmark = pytest.mark.usefixtures("one_device")


DECODER = '--lora.target_modules=["decoder/.*_proj", "projector"]'


def lora(settings: dict, init: Path, *more: str) -> RunConfig:
    chosen = [DECODER, "--lora.rank=4", "--lora.base_dtype=float32", f"--train.init_from={init}"]
    return config(settings, *chosen, *more)


def test_training_learns_and_saves_adapters_only(settings: dict, tiny_checkpoint: Path) -> None:
    before = {p: p.read_bytes() for p in tiny_checkpoint.rglob("*") if p.is_file()}
    output = Path(settings["train"]["output_dir"])
    train(lora(settings, tiny_checkpoint, "--train.steps=30", "--optimizer.peak_lr=2e-2"))
    curve = losses(output)
    # The frozen random LM head limits how far the loss can fall.
    assert np.mean(curve[-4:]) < np.mean(curve[:4]) - 0.25
    assert before == {p: p.read_bytes() for p in tiny_checkpoint.rglob("*") if p.is_file()}
    adapter, card = checkpoint.load_adapter(output)
    assert not checkpoint.is_checkpoint(output) and card.base == str(tiny_checkpoint.resolve())
    trees = step_metadata(output, checkpoint.find_step(output))
    shapes = [getattr(x, "shape", ()) for x in jax.tree.leaves(trees)]
    rank_sized = [shape for shape in shapes if len(shape) > 1]
    assert rank_sized and all(4 in shape for shape in rank_sized), "no state is the base's size"

    # The directory answers by itself, as the base with the adapter does.
    loaded, plain = qa_jax.load(output), qa_jax.load(tiny_checkpoint)
    assert loaded.processor is not None
    prompt = loaded.processor(
        "<|audio_bos|><|AUDIO|><|audio_eos|>what is", [(make_waveform(0.6), 16_000)]
    )
    moved = loaded.logits(prompt)
    given = qa_jax.load(tiny_checkpoint, adapter=output).logits(prompt)
    np.testing.assert_array_equal(moved, given)
    assert np.abs(moved - plain.logits(prompt)).max() > 1e-2
    # Beside the model or merged into it is the same.
    model = Qwen2Audio(loaded.config)
    add_lora(model, LoraConfig(("decoder/.*_proj", "projector"), 4, base_dtype="float32"))
    ids = jnp.asarray(prompt["input_ids"])
    beside = bind(model)(merge_trees(plain.params, adapter.params))
    text = beside.logits(beside(ids, jnp.ones_like(ids))[0])
    merged = bind(Qwen2Audio(loaded.config))(
        merge_lora(jax.tree.map(jnp.copy, plain.params), adapter)
    )
    np.testing.assert_allclose(
        text, merged.logits(merged(ids, jnp.ones_like(ids))[0]), atol=1e-5 * np.abs(text).max()
    )


def test_resume_with_dropout_and_ema_is_bit_exact(
    settings: dict, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    more = ("--lora.dropout=0.3", "--train.ema_decay=0.5", "--train.steps=5")
    straight = lora(settings, tiny_checkpoint, *more, f"--train.output_dir={tmp_path / 'straight'}")
    train(straight)
    stopped = lora(settings, tiny_checkpoint, *more)
    with stopping_after(2), pytest.raises(Exception, match="stopped at step"):
        train(stopped)
    train(stopped)
    assert losses(stopped.train.output_dir) == losses(straight.train.output_dir)
    found, expected = (
        checkpoint.load_adapter(run.train.output_dir)[0].params for run in (stopped, straight)
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    without = lora(settings, tiny_checkpoint, *more, "--lora.dropout=0", "--train.steps=5")
    with pytest.raises(InputError, match=r"lora\.dropout: is 0\.0, and the run in .* began with"):
        train(without)


def test_init_from_an_adapter(settings: dict, tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = settings["train"]["output_dir"]
    train(lora(settings, tiny_checkpoint, "--train.steps=3"))
    # A run of all parameters that does not move them has those of the merged model.
    ref_params = (
        "--train.steps=1",
        "--optimizer.peak_lr=0",
        f"--train.output_dir={tmp_path / 'full'}",
    )
    train(config(settings, f"--train.init_from={first}", *ref_params))
    jax.tree.map(
        np.testing.assert_array_equal,
        qa_jax.load(tmp_path / "full").params,
        qa_jax.load(first).params,
    )
    # A second adapter on top of the first changes nothing before its first step.
    train(lora(settings, Path(first), *ref_params[:2], f"--train.output_dir={tmp_path / 'second'}"))
    jax.tree.map(
        np.testing.assert_array_equal,
        qa_jax.load(tmp_path / "second").params,
        qa_jax.load(first).params,
    )


def test_frozen_gradients_are_not_computed() -> None:
    """Operations and memory of the compiled step, layers unrolled so that the compiler counts
    all: nothing is computed for what does not move."""
    small = preset("bench")
    model = dataclasses.replace(
        small,
        audio=dataclasses.replace(small.audio, encoder_layers=2),
        text=dataclasses.replace(small.text, num_hidden_layers=2, vocab_size=4096),
        audio_token_id=4000,
        unroll_layers=True,
    )
    full = RunConfig(model=model)
    optimizer = dataclasses.replace(full.optimizer, freeze=("encoder",))
    frozen = dataclasses.replace(full, optimizer=optimizer)
    layers = LoraConfig(("decoder/.*_proj",), rank=4, base_dtype="float32")
    adapted = dataclasses.replace(full, lora=layers)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shapes = Shapes(num_rows=2, num_tokens=256, num_clips=2, num_frames=504, grad_accum_steps=1)
    flops, temporary, arguments = {}, {}, {}
    for name, run in {"full": full, "frozen": frozen, "adapted": adapted}.items():
        compiled = lower_step(run, mesh, shapes).compile()
        cost: Any = compiled.cost_analysis()
        stats = compiled.memory_analysis()
        flops[name], temporary[name] = cost["flops"], stats.temp_size_in_bytes
        arguments[name] = stats.argument_size_in_bytes
        # What is counted leaves out what is not computed, and the compiler's count agrees.
        counted = executed_flops(run, make_models(model, run.lora), shapes)
        assert flops[name] == pytest.approx(counted, rel=0.1), name
    assert flops["adapted"] < 0.9 * flops["frozen"] < 0.75 * flops["full"]
    assert temporary["adapted"] < temporary["frozen"] < temporary["full"]
    # Two moments for each trainable parameter, none for the others.
    assert arguments["adapted"] < 0.4 * arguments["full"]
