"""One training step on this machine's processor, here and in torch with transformers.

    python benchmarks/training_step.py

The same random weights and clips in float32, the same loss on the text, AdamW with the same
settings; the first losses are compared, and steps take turns. Written to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from against_transformers import BATCH, TEXT_TOKENS, inputs, median_seconds, reference
from common import processor_name, replace_section

import qa_jax
from qa_jax.config import OptimizerConfig, preset
from qa_jax.data import TrainBatch
from qa_jax.generate.inputs import prepare
from qa_jax.model import Qwen2Audio, declarations, nest
from qa_jax.train.optimizer import make_optimizer, schedule, trainable
from qa_jax.train.step import TrainState, make_step

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

    config = OptimizerConfig(peak_lr=RATE, warmup_steps=0, final_lr=1.0)
    model = Qwen2Audio(ours.config)
    step = make_step(
        model,
        make_optimizer(config, 1000, model),
        trainable(nest(declarations(model)), config.freeze),
        schedule(config, 1000),
    )
    step = jax.jit(step, donate_argnums=0)
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
    optimizer = make_optimizer(config, 1000, model)
    state = TrainState(jnp.zeros((), jnp.int32), ours.params, optimizer.init(ours.params))

    def our_step() -> float:
        nonlocal state
        state, metrics = step(state, rows)
        return float(metrics["loss"])

    first = their_step(), our_step()
    error = abs(first[0] - first[1]) / first[0]
    assert error < 1e-5, f"losses differ: {first}"
    their_time, our_time = median_seconds(their_step, our_step, runs)
    row = (
        f"| training step | {seconds} s | {their_time * 1e3:,.0f} ms | {our_time * 1e3:,.0f} ms "
        f"| {their_time / our_time:.1f}x | {error:.0e} |"
    )
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    lines = [
        f"Batch of {BATCH} clips with {TEXT_TOKENS} text tokens each, the `bench` preset; float32, "
        f"AdamW, clipping; medians of {arguments.runs} alternating steps.",
        f"{datetime.date.today()}, {processor_name()}, {cores} cores, Python "
        f"{platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}.",
        "",
        "| work | clip | transformers | qa_jax | ratio | losses differ by |",
        "|---|---|---|---|---|---|",
        *(measure(seconds, arguments.runs) for seconds in (5, 30)),
    ]
    replace_section("training_step", lines)


if __name__ == "__main__":
    main()
