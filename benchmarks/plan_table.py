"""`qa-jax plan` of full fine-tuning on the topologies that people have, as docs/plan.md shows it.

    python benchmarks/plan_table.py [--quick]

Needs the [tpu] extra and no TPU; about five minutes a line, or two with --quick.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

from common import replace_section

from qa_jax.config import run_config
from qa_jax.plan import Plan, find_target, make_plan

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "plan.md"
# Topology, rows on each of its devices, remat.
LINES = [
    ("v5e:4x4", 2, "full"),
    ("v6e:2x4", 2, "full"),
    ("v5p:2x2x1", 2, "full"),
    ("v5e:16x16", 2, "full"),
    ("v6e:16x16", 4, "full"),
    ("v5p:4x4x4", 4, "full"),
]


def row(plan: Plan) -> str:
    gib = {name: size / 2**30 for name, size in plan.bytes_per_chip.items()}
    s, sent = plan.shapes, sum(plan.network_bytes_per_chip.values()) / 2**30
    state = gib["parameters"] + gib["optimizer"]
    return (
        f"| {plan.topology} | {s.rows} x {s.tokens:,} | {s.clips} | {state:.1f} "
        f"| {sum(gib.values()):.1f} / {plan.hbm_bytes_per_chip / 2**30:.0f} | {sent:.0f} "
        + " ".join(f"| {plan.seconds[k]:.2f}" for k in ("compute", "memory", "network"))
        + f" | {plan.bound} | {plan.mfu_bound:.0%} | {plan.compile_seconds:.0f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    table = [
        "| topology | rows x tokens | 30 s clips | state, GiB | in all, GiB | sent, GiB "
        "| compute, s | memory, s | network, s | bound | MFU at most | compiled in |",
        "|" + "---|" * 12,
    ]
    for name, each, remat in LINES:
        target = find_target(name)
        config = run_config(
            ROOT / "configs" / "sft_7b.yaml",
            [
                "--optimizer.freeze=[encoder/embed_positions]",
                "--data.pack_tokens=2048",
                f"--data.buckets={{3000: {each * target.size}}}",
                f"--model.remat={remat}",
            ],
        )
        plan = make_plan(config, target, quick=quick)
        table.append(row(plan) if plan.fits else f"| {name} | does not fit: {plan.problem} |")
        print(table[-1], flush=True)
    replace_section("table", table, PAGE)


if __name__ == "__main__":
    main()
