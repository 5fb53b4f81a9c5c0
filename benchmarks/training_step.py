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
    parse_runs,
    reference,
    row,
)
from common import replace_section

import qa_jax
from qa_jax.config import OptimizerConfig, RunConfig, preset
from qa_jax.data import TrainBatch
from qa_jax.generate.inputs import prepare_inputs
from qa_jax.train.models import make_models
from qa_jax.train.objectives import make_objective
from qa_jax.train.optimizer import make_optimizer, make_trainable_mask
from qa_jax.train.run import make_run_step
from qa_jax.train.step import TrainState
from qa_jax.trees import partition

RATE = 1e-4


def measure(seconds: int, runs: int) -> str:
    """A row of the table: medians of a step, and the difference of the first losses."""
    with tempfile.TemporaryDirectory() as directory:
        oracle = reference(Path(directory)).train()
        model = qa_jax.load(directory)
    batch = inputs(seconds)
    audio = preset("bench").audio_token_id
    labels = np.where(batch["input_ids"] == audio, -100, batch["input_ids"])
    tensors = {k: torch.tensor(v) for k, v in batch.items()} | {"labels": torch.tensor(labels)}
    oracle.model.audio_tower.embed_positions.weight.requires_grad_(False)
    adamw = torch.optim.AdamW(
        (p for p in oracle.parameters() if p.requires_grad),
        lr=RATE,
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )

    def transformers_step() -> float:
        adamw.zero_grad(set_to_none=True)
        loss = oracle(**tensors, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(oracle.parameters(), 1.0)
        adamw.step()
        return float(loss)

    config = RunConfig(
        optimizer=OptimizerConfig(peak_lr=RATE, warmup_steps=0, final_lr_fraction=1.0)
    )
    models = make_models(model.config, config.lora)
    objective = make_objective(config, models, 1)
    optimizer = make_optimizer(config.optimizer, 1000, models.policy)
    step = jax.jit(make_run_step(config, models, objective, optimizer), donate_argnums=0)
    model_inputs = prepare_inputs(batch, model.config)
    rows = TrainBatch(
        *(
            np.asarray(x)[None]
            for x in (
                model_inputs.tokens,
                model_inputs.attention_mask.astype(np.int32),
                (labels >= 0).astype(np.float32),
                model_inputs.waveform,
                model_inputs.num_frames,
            )
        )
    )
    trainable, _ = partition(
        model.params, make_trainable_mask(models.policy, config.optimizer.freeze)
    )
    state = TrainState(jnp.zeros((), jnp.int32), model.params, optimizer.init(trainable))

    def qa_jax_step() -> float:
        nonlocal state
        state, metrics = step(state, rows)
        return float(metrics["loss"])

    first = transformers_step(), qa_jax_step()
    error = abs(first[0] - first[1]) / first[0]
    assert error < 1e-5, f"losses differ: {first}"
    times = median_seconds(transformers_step, qa_jax_step, runs, warm=True)
    return row("training step", seconds, *times, f"{error:.0e}")


def main() -> None:
    runs = parse_runs(__doc__)
    lines = heading(
        f", the `bench` preset; float32, AdamW, clipping; medians of {runs} interleaved runs.",
        "losses differ by",
    )
    replace_section("training_step", [*lines, *(measure(s, runs) for s in (5, 30))])


if __name__ == "__main__":
    main()
