"""One training step on this machine's processor, here and in torch with transformers.

    python benchmarks/training_step.py

The same random weights and clips in float32, the same loss on the text, AdamW with the same
settings; the first losses are compared. The two sides take turns of two steps, of which the second
counts: in training a step follows its like. Written to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from against_transformers import (
    heading,
    inputs,
    median_seconds,
    reference,
    row,
    runs_asked_for,
)
from common import replace_section

import qa_jax
from qa_jax.config import OptimizerConfig, RunConfig, preset
from qa_jax.data import TrainBatch
from qa_jax.generate.inputs import prepare
from qa_jax.model import split
from qa_jax.train.optimizer import make_optimizer, trainable
from qa_jax.train.setup import make_models, make_run_step
from qa_jax.train.step import TrainState

RATE = 1e-4


def measure(seconds: int, runs: int) -> str:
    """A row of the table: medians of a step, and how far the first losses are apart."""
    with tempfile.TemporaryDirectory() as directory:
        theirs = reference(Path(directory)).train()
        ours = qa_jax.load(directory)
    batch = inputs(seconds)
    audio = preset("bench").audio_token_id
    labels = np.where(batch["input_ids"] == audio, -100, batch["input_ids"])
    tensors = {k: torch.tensor(v) for k, v in batch.items()} | {"labels": torch.tensor(labels)}
    theirs.model.audio_tower.embed_positions.weight.requires_grad_(False)
    adamw = torch.optim.AdamW(
        (p for p in theirs.parameters() if p.requires_grad),
        lr=RATE,
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )

    def their_step() -> float:
        adamw.zero_grad(set_to_none=True)
        loss = theirs(**tensors, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        adamw.step()
        return float(loss)

    config = RunConfig(optimizer=OptimizerConfig(peak_lr=RATE, warmup_steps=0, final_lr=1.0))
    models = make_models(ours.config, config.lora)
    optimizer = make_optimizer(config.optimizer, 1000, models.model)
    step = jax.jit(make_run_step(config, models, optimizer, 1), donate_argnums=0)
    made = prepare(batch, ours.config, token_multiple=1)
    rows = TrainBatch(
        *(
            np.asarray(x)[None]
            for x in (
                made.tokens,
                made.valid.astype(np.int32),
                (labels >= 0).astype(np.float32),
                made.signal,
                made.frames,
            )
        )
    )
    moving, _ = split(ours.params, trainable(models.model, config.optimizer.freeze))
    state = TrainState(jnp.zeros((), jnp.int32), ours.params, optimizer.init(moving))

    def our_step() -> float:
        nonlocal state
        state, metrics = step(state, rows)
        return float(metrics["loss"])

    first = their_step(), our_step()
    error = abs(first[0] - first[1]) / first[0]
    assert error < 1e-5, f"losses differ: {first}"
    times = median_seconds(their_step, our_step, runs, warm=True)
    return row("training step", seconds, *times, f"{error:.0e}")


def main() -> None:
    runs = runs_asked_for(__doc__)
    lines = heading(
        f", the `bench` preset; float32, AdamW, clipping; medians of {runs} turns.",
        "losses differ by",
    )
    replace_section("training_step", [*lines, *(measure(s, runs) for s in (5, 30))])


if __name__ == "__main__":
    main()
