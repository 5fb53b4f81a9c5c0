"""The demo's two stages with optimizers that need less memory than AdamW, for RESULTS.md.

    python benchmarks/optimizer_memory.py --demo runs/demo      # after `make demo`; a quarter hour

Every optimizer starts from the same random parameters and sees the same batches. Finished runs are
not run again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from common import replace_section

from qa_jax.config import load_run_config
from qa_jax.demo.run import STAGES, TASKS
from qa_jax.train import train
from qa_jax.train.metrics import read_metrics

OPTIMIZERS = {
    "AdamW": ("8", ["--optimizer.name=adamw"]),
    "AdamW, bfloat16 first moment": (
        "6",
        ["--optimizer.name=adamw", "--optimizer.mu_dtype=bfloat16"],
    ),
    "Adafactor, bfloat16 first moment": (
        "2",
        ["--optimizer.name=adafactor", "--optimizer.mu_dtype=bfloat16"],
    ),
    "Adafactor, no first moment": ("0", ["--optimizer.name=adafactor", "--optimizer.b1=0"]),
}
"""Bytes of the moments per parameter of a large matrix, and settings."""
WINDOW = 100
"""Steps over which the training loss is averaged."""
SHOWN = (200, 400, 720), (200, 600, 1130)
"""Steps of each stage in the table."""


def losses(demo: Path, output: Path, settings: list[str]) -> list[float]:
    """Training losses of both stages at the steps shown, and held-out losses of the last."""
    found: list[float] = []
    start: list[str] = []
    for (_, recipe, manifest, name), steps in zip(STAGES, SHOWN, strict=True):
        directory = output / name
        overrides = [
            f"--data.train={demo / 'data' / manifest}",
            f"--data.tokenizer={demo / 'tokenizer'}",
            f"--train.output_dir={directory}",
            "--train.log_every=10",
            *settings,
            *start,
        ]
        if start:
            sets = {task: str(demo / "data" / f"dev_{task}.jsonl") for task in TASKS}
            overrides.append(f"--data.eval={sets}")
        metrics = directory / "metrics.jsonl"
        rows = read_metrics(metrics) if metrics.is_file() else []
        if not any(row["step"] == steps[-1] for row in rows):
            train(load_run_config(Path("configs") / recipe, overrides))
            rows = read_metrics(metrics)
        for step in steps:
            window = [r["loss"] for r in rows if "loss" in r and step - WINDOW < r["step"] <= step]
            found.append(sum(window) / len(window))
        start = [f"--train.init_from={directory}"]
    (last,) = [row for row in rows if f"eval_{next(iter(TASKS))}_loss" in row]
    return [*found, *(last[f"eval_{task}_loss"] for task in TASKS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--output", type=Path, default=Path("runs/optimizer_memory"))
    parser.add_argument("--peak-lr", default="2e-3", help="of both stages, of every optimizer")
    arguments = parser.parse_args()
    columns = [f"stage {i}, step {x}" for i, steps in enumerate(SHOWN, 1) for x in steps]
    columns += [f"held out, {task}" for task in TASKS]
    lines = [
        f"Learning rate {arguments.peak_lr}; training losses are means of {WINDOW} steps.",
        "",
        f"| optimizer | moments, bytes | {' | '.join(columns)} |",
        "|" + "---|" * (2 + len(columns)),
    ]
    for i, (name, (size, settings)) in enumerate(OPTIMIZERS.items()):
        rate = f"--optimizer.peak_lr={arguments.peak_lr}"
        values = losses(arguments.demo, arguments.output / str(i), [*settings, rate])
        lines.append(f"| {name} | {size} | {' | '.join(f'{x:.3f}' for x in values)} |")
        print(lines[-1], flush=True)
    replace_section("optimizer_memory", lines)


if __name__ == "__main__":
    main()
