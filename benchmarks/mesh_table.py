"""Meshes of TPU topologies and slices, each with the full-size training step compiled for it.

    python benchmarks/mesh_table.py [TOPOLOGY ...]

Needs the [tpu] extra and no TPU; about two minutes per line, compiled with low effort. One row of
2,048 packed tokens a batch shard, full remat, AdamW's first moment in bfloat16. Writes the table in
RESULTS.md; lines of other topologies are kept.
"""

from __future__ import annotations

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

from common import RESULTS, replace_section
from plan_table import recipe

from qa_jax.plan import find_target, make_plan

CASES = [
    ("v5e:4x4", 1, 1),
    ("v5e:16x16", 1, 1),
    ("v6e:2x2", 1, 1),
    ("v6e:4x4", 1, 1),
    ("v6e:4x4", 1, 2),
    ("v6e:4x4", 1, 4),
    ("v5p:4x4x4", 1, 1),
    ("v5p:4x4x4", 1, 2),
    ("v6e:16x16", 1, 1),
    ("v5e:4x4", 2, 1),
    ("v5e:4x4", 4, 1),
    ("v6e:4x4", 2, 2),
    ("v5p:2x2x2", 2, 2),
]
"""Topology, slices, tensor axis."""
HEAD = [
    "| topology | slices | data x fsdp x tensor | GiB per chip | GiB sent | compile time |",
    "|---|---|---|---|---|---|",
]


def line(topology: str, slices: int, tensor: int) -> str:
    target = find_target(topology, slices)
    mesh = f"--mesh.data={slices}", f"--mesh.tensor={tensor}"
    rows = target.num_devices // tensor
    config = recipe(rows, "--optimizer.mu_dtype=bfloat16", *mesh)
    plan = make_plan(config, target, quick=True)
    memory = sum(plan.bytes_per_chip.values()) / 2**30
    total = plan.hbm_bytes_per_chip / 2**30
    fits = f"{memory:.1f} of {total:.0f}" if plan.fits else f"does not fit: {plan.problem}"
    sent = sum(plan.network_bytes_per_chip.values()) / 2**30
    sizes = " x ".join(str(plan.mesh[axis]) for axis in ("data", "fsdp", "tensor"))
    return (
        f"| {topology} | {slices} | {sizes} | {fits} | {sent:.0f} | {plan.compile_seconds:.0f} s |"
    )


def main() -> None:
    done = {x: x for x in RESULTS.read_text(encoding="utf-8").splitlines() if x.startswith("| v")}
    lines = {tuple(x.split(" | ")[:3]): x for x in done}
    for topology, slices, tensor in CASES:
        if not sys.argv[1:] or topology in sys.argv[1:]:
            new = line(topology, slices, tensor)
            print(new, flush=True)
            lines[tuple(new.split(" | ")[:3])] = new
            replace_section("mesh_table", [*HEAD, *lines.values()])


if __name__ == "__main__":
    main()
