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
SHOWN = (200, 400), (200, 600)
"""Steps of each stage in the table, besides the last."""


def losses(demo: Path, output: Path, settings: list[str]) -> dict[str, float]:
    """Training losses of both stages at the steps shown, and held-out losses of the last."""
    found: dict[str, float] = {}
    start: list[str] = []
    stages = zip(STAGES, SHOWN, strict=True)
    for stage, ((_, recipe, manifest, name), shown) in enumerate(stages, start=1):
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
        config = load_run_config(Path("configs") / recipe, overrides)
        last, metrics = config.train.steps, directory / "metrics.jsonl"
        rows = read_metrics(metrics) if metrics.is_file() else []
        if not any(row["step"] == last for row in rows):
            train(config)
            rows = read_metrics(metrics)
        for step in (*shown, last):
            window = [r["loss"] for r in rows if "loss" in r and step - WINDOW < r["step"] <= step]
            found[f"stage {stage}, step {step}"] = sum(window) / len(window)
        start = [f"--train.init_from={directory}"]
    for task in TASKS:
        (found[f"held out, {task}"],) = [x for r in rows if (x := r.get(f"eval_{task}_loss"))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--output", type=Path, default=Path("runs/optimizer_memory"))
    parser.add_argument("--peak-lr", default="2e-3", help="of both stages, of every optimizer")
    arguments = parser.parse_args()
    lines: list[str] = []
    for i, (name, (size, settings)) in enumerate(OPTIMIZERS.items()):
        rate = f"--optimizer.peak_lr={arguments.peak_lr}"
        values = losses(arguments.demo, arguments.output / str(i), [*settings, rate])
        if not lines:
            lines = [
                f"Learning rate {arguments.peak_lr}; training losses are means of {WINDOW} steps.",
                "",
                f"| optimizer | moments, bytes | {' | '.join(values)} |",
                "|" + "---|" * (2 + len(values)),
            ]
        numbers = " | ".join(f"{x:.3f}" for x in values.values())
        lines.append(f"| {name} | {size} | {numbers} |")
        print(lines[-1], flush=True)
    replace_section("optimizer_memory", lines)


if __name__ == "__main__":
    main()
