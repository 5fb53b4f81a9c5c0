"""`qa-jax plan` of the recipes in configs/hardware, for the table in docs/plan.md.

    python benchmarks/plan_table.py [--quick] [--no-comparison] [RECIPE ...]

Needs the [tpu] extra and no TPU; ten to twenty minutes per line, since each is compiled with and
without the options of `train.xla_flags` (with --no-comparison only with them), or two with --quick,
which predicts nothing. Programs compiled earlier are read from the cache of `qa-jax plan`. Replaces
the lines of the named recipes, or all.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from common import replace_section

from qa_jax.config import RunConfig, load_run_config
from qa_jax.paths import cache_home
from qa_jax.plan import Plan, find_target, make_plan
from qa_jax.plan.report import describe

CACHE = cache_home() / "plan"
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "plan.md"
HARDWARE = {
    "v5e-16": "v5e:4x4",
    "v6e-8": "v6e:2x4",
    "v5p-8": "v5p:2x2x1",
    "v5e-256": "v5e:16x16",
    "v6e-256": "v6e:16x16",
    "v5p-128": "v5p:4x4x4",
    "v6e-4": "v6e:2x2",
    "h200-1": "h200:1",
    "h100-8": "h100:8",
}
"""Topology of each recipe in configs/hardware."""


def recipe(rows: int, *settings: str) -> RunConfig:
    """Full fine-tuning on rows of 2,048 packed tokens and 30 s clips, with full remat, and more
    settings."""
    overrides = ["--model.remat=full", f"--data.buckets={{3000: {rows}}}", *settings]
    return load_run_config(ROOT / "configs" / "hardware" / "full_finetuning.yaml", overrides)


def row(name: str, plan: Plan, without: Plan | None) -> str:
    gib = {name: size / 2**30 for name, size in plan.bytes_per_chip.items()}
    s, sent = plan.shapes, sum(plan.network_bytes_per_chip.values()) / 2**30
    state = gib["parameters"] + gib["optimizer"]
    return (
        f"| {name} | {plan.topology} | {plan.remat} | {s.num_rows} x {s.num_tokens:,} "
        f"| {s.num_clips} | {state:.1f} "
        f"| {sum(gib.values()):.1f} / {plan.hbm_bytes_per_chip / 2**30:.0f} | {sent:.0f} "
        + " ".join(f"| {plan.seconds[k]:.2f}" for k in ("compute", "memory", "network"))
        + f" | {plan.bound} | {plan.mfu_bound:.0%} | "
        + (f"{plan.predicted_seconds:.2f}" if plan.predicted else "")
        + " | "
        + " | ".join(f"{x.mfu_predicted:.0%}" if x and x.predicted else "" for x in (without, plan))
        + " | "
        + (f"{plan.compile_seconds:.0f} s |" if plan.compiled else "analytic |")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-comparison", action="store_true")
    parser.add_argument("names", nargs="*", default=list(HARDWARE), help="recipes; default: all")
    arguments = parser.parse_args()
    table = [
        "| recipe | topology | remat | rows x tokens | 30 s clips | state, GiB | total, GiB "
        "| sent, GiB | compute, s | memory, s | network, s | bound | MFU bound | predicted, s "
        "| MFU predicted without options | MFU predicted | compile time |",
        "|" + "---|" * 17,
    ]
    for name in arguments.names:
        path, target = ROOT / "configs" / "hardware" / f"{name}.yaml", find_target(HARDWARE[name])
        plan = make_plan(load_run_config(path), target, quick=arguments.quick, cache_dir=CACHE)
        print("\n".join(describe(plan)), file=sys.stderr, flush=True)
        without = None
        if plan.predicted and not arguments.no_comparison:
            config = load_run_config(path, ["--train.xla_flags=default"])
            without = make_plan(config, target, cache_dir=CACHE)
        unfit = f"| {name} | {plan.topology} | does not fit: {plan.problem} |"
        table.append(row(name, plan, without) if plan.fits else unfit)
        print(table[-1], flush=True)
        write(table[:2], {name: table[-1]})


def write(head: list[str], new: dict[str, str]) -> None:
    """Replaces lines of the page's table; the lines of other recipes are kept."""
    before = PAGE.read_text(encoding="utf-8").splitlines()
    old = {line.split(" | ")[0].removeprefix("| "): line for line in before if line[:2] == "| "}
    lines = {name: new.get(name) or old.get(name) for name in HARDWARE}
    replace_section("table", [*head, *filter(None, lines.values())], PAGE)


if __name__ == "__main__":
    main()
