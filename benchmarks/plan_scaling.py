"""The training step of 8.4B from 16 to 256 chips, with as many rows a chip: what grows?

    python benchmarks/plan_scaling.py

Needs libtpu (`pip install ".[tpu]"`), and no TPU. Compiles with little effort, a minute or two for
each topology; writes docs/plan_scaling.svg and a table in docs/plan.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

from common import replace_section
from plan_table import recipe

from qa_jax.plan import Plan, find_target, make_plan

TOPOLOGIES = ("v5e:4x4", "v5e:8x8", "v5e:16x16")
ROWS_PER_CHIP = 2
DOCS = Path(__file__).parents[1] / "docs"


def summed(plan: Plan) -> float:
    """What a chip sends in sums: gradients, and little else."""
    sent = plan.network_bytes_per_chip
    return sum(sent.get(kind, 0.0) for kind in ("reduce-scatter", "all-reduce"))


def passed_on(plan: Plan) -> float:
    """What it sends besides: weights that are gathered. On few chips the compiler passes these and
    the gradients from neighbour to neighbour while it computes, and the kinds do not tell them
    apart."""
    return sum(plan.network_bytes_per_chip.values()) - summed(plan)


def main() -> None:
    plans = []
    for topology in TOPOLOGIES:
        target = find_target(topology)
        plan = make_plan(recipe(ROWS_PER_CHIP * target.size), target, quick=True)
        plans.append(plan)
        print(topology, plan.bytes_per_chip, plan.network_bytes_per_chip, flush=True)
    show(plans)


def show(plans: list[Plan]) -> None:
    """Writes the table and the picture."""
    lines = [
        "| chips | rows | TFLOP a chip | GiB held | state and gradients, GiB "
        "| gathered or passed on, GiB | summed, GiB | sent in all, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for plan in plans:
        held = plan.bytes_per_chip
        state = sum(held[name] for name in ("parameters", "optimizer", "gradients"))
        sent = passed_on(plan), summed(plan)
        lines.append(
            f"| {plan.devices} | {plan.shapes.rows} | {plan.flops_per_chip / 1e12:.1f} | "
            f"{sum(held.values()) / 2**30:.2f} | {state / 2**30:.2f} | {sent[0] / 2**30:.1f} | "
            f"{sent[1] / 2**30:.1f} | {sum(sent) / 2**30:.1f} |"
        )
    replace_section("scaling", lines, DOCS / "plan.md")
    draw(plans)
    print("\n".join(lines))


def draw(plans: list[Plan]) -> None:
    """Each against its value on the fewest chips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series: dict[str, Any] = {
        "operations": lambda p: p.flops_per_chip,
        "bytes held": lambda p: sum(p.bytes_per_chip.values()),
        "bytes sent": lambda p: sum(p.network_bytes_per_chip.values()),
        "of these, all but sums": passed_on,
    }
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    chips = [p.devices for p in plans]
    for name, of in series.items():
        axes.plot(chips, [of(p) / of(plans[0]) for p in plans], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(chips, [str(n) for n in chips])
    axes.set(xlabel="chips", ylabel="of a chip, against 16 chips", ylim=(0, None))
    axes.legend()
    figure.savefig(DOCS / "plan_scaling.svg")


if __name__ == "__main__":
    main()
