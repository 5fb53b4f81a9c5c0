"""Cycles that the TPU compiler estimates for plain matrix products, against their operations.

    python benchmarks/plan_calibration.py

Needs the [tpu] extra and no TPU; a minute or two per chip.
"""

from __future__ import annotations

import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from common import replace_section

from qa_jax.plan import find_target
from qa_jax.plan.cycles import predict
from qa_jax.plan.target import Target

CHIPS = ("v5e:1x1", "v5p:1x1x1", "v6e:1x1")
SHAPES = (
    *((1024, 4096, 4096), (4096, 4096, 4096), (8192, 4096, 4096), (8192, 8192, 8192)),
    *((4096, 4096, 11008), (4096, 11008, 4096), (2048, 4096, 32768)),  # the decoder's
    *((6000, 1280, 5120), (6000, 5120, 1280), (6000, 1280, 1280)),  # the encoder's, four clips
)
"""(rows, contracted, columns)."""


def seconds(target: Target, m: int, k: int, n: int) -> float:
    """Of one product of bfloat16 matrices."""
    sharding = jax.sharding.SingleDeviceSharding(target.devices[0])
    a = jax.ShapeDtypeStruct((m, k), jnp.bfloat16, sharding=sharding)
    b = jax.ShapeDtypeStruct((k, n), jnp.bfloat16, sharding=sharding)
    text = jax.jit(jnp.matmul).lower(a, b).compile().as_text() or ""
    return sum(x.seconds for x in predict(text, target.chip) if x.kind == "products")


def main() -> None:
    targets = [find_target(name) for name in CHIPS]
    lines = [
        f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}: the time of the "
        "operations at the peak, as a fraction of the predicted time.",
        "",
        "| rows x contracted x columns | "
        + " | ".join(f"{t.name.split(':')[0]}, {t.chip.clock / 1e9:g} GHz" for t in targets)
        + " |",
        "|" + "---|" * (1 + len(targets)),
    ]
    for shape in SHAPES:
        m, k, n = shape
        rates = [2 * m * k * n / t.chip.flops / seconds(t, *shape) for t in targets]
        cells = [f"{m:,} x {k:,} x {n:,}", *(f"{rate:.0%}" for rate in rates)]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    replace_section("calibration", lines)


if __name__ == "__main__":
    main()
