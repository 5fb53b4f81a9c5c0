"""Weak scaling of the 8.4B training step from 16 to 256 chips, according to `qa-jax plan`.

    python benchmarks/plan_scaling.py

Needs libtpu (`pip install ".[tpu]"`), and no TPU. Compiles with low effort, a minute or two per
topology; writes docs/plan_scaling.svg and a table in docs/plan.md.
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


def reduced_bytes(plan: Plan) -> float:
    """Bytes sent by a chip in reductions, mostly of gradients."""
    sent = plan.network_bytes_per_chip
    return sum(sent.get(kind, 0.0) for kind in ("reduce-scatter", "all-reduce"))


def gathered_bytes(plan: Plan) -> float:
    """Bytes sent by a chip in all-gathers and collective-permutes, mostly of weights. On few chips
    XLA uses collective matmuls, whose collective-permutes also carry gradients."""
    return sum(plan.network_bytes_per_chip.values()) - reduced_bytes(plan)


def main() -> None:
    plans = []
    for topology in TOPOLOGIES:
        target = find_target(topology)
        plan = make_plan(recipe(ROWS_PER_CHIP * target.num_devices), target, quick=True)
        plans.append(plan)
        print(topology, plan.bytes_per_chip, plan.network_bytes_per_chip, flush=True)
    show(plans)


def show(plans: list[Plan]) -> None:
    """Writes the table and the plot."""
    lines = [
        "| chips | rows | TFLOP per chip | memory, GiB | state and gradients, GiB "
        "| all-gather + collective-permute, GiB | reductions, GiB | total sent, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for plan in plans:
        used = plan.bytes_per_chip
        state = sum(used[name] for name in ("parameters", "optimizer", "gradients"))
        sent = gathered_bytes(plan), reduced_bytes(plan)
        lines.append(
            f"| {plan.devices} | {plan.shapes.num_rows} | {plan.flops_per_chip / 1e12:.1f} | "
            f"{sum(used.values()) / 2**30:.2f} | {state / 2**30:.2f} | {sent[0] / 2**30:.1f} | "
            f"{sent[1] / 2**30:.1f} | {sum(sent) / 2**30:.1f} |"
        )
    replace_section("scaling", lines, DOCS / "plan.md")
    plot(plans)
    print("\n".join(lines))


def plot(plans: list[Plan]) -> None:
    """Plots each value relative to the fewest chips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series: dict[str, Any] = {
        "operations": lambda p: p.flops_per_chip,
        "memory": lambda p: sum(p.bytes_per_chip.values()),
        "bytes sent": lambda p: sum(p.network_bytes_per_chip.values()),
        "all-gather + collective-permute": gathered_bytes,
    }
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    chips = [p.devices for p in plans]
    for name, value in series.items():
        axes.plot(chips, [value(p) / value(plans[0]) for p in plans], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(chips, [str(n) for n in chips])
    axes.set(xlabel="chips", ylabel="per chip, relative to 16 chips", ylim=(0, None))
    axes.legend()
    figure.savefig(DOCS / "plan_scaling.svg")


if __name__ == "__main__":
    main()
