"""What computing attention and the loss piece by piece saves: the compiler's word for it.

    python benchmarks/plan_memory.py

The step of 8.4B at one batch, as it is and with plain attention and plain cross-entropy, compiled
for a topology on which both fit. Needs libtpu, and no TPU. Writes a table in docs/plan.md.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from common import replace_section
from plan_table import recipe

from qa_jax.model import Visible, decoder, encoder
from qa_jax.parallel import make_mesh
from qa_jax.plan import find_target
from qa_jax.plan.estimate import batch_shapes
from qa_jax.plan.plan import QUICK, lower_step
from qa_jax.train import objectives

TOPOLOGY, ROWS_PER_CHIP = "v5p:4x4x4", 4


def plain_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, visible: Visible, *_: Any, **__: Any
) -> jax.Array:
    """All scores at once, as `jax.nn.dot_product_attention` computes them."""
    mask = (visible.queries[:, :, None] == visible.keys[:, None]) & (visible.keys[:, None] > 0)
    if visible.causal:
        mask &= jnp.tril(jnp.ones(mask.shape[1:], bool))
    attend = jax.nn.dot_product_attention
    return attend(q, k, v, mask=mask[:, None], scale=1.0, implementation="xla")


def plain_cross_entropy(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, wanted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """All logits at once."""
    logits = jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - picked
    likeliest = picked >= jnp.max(logits, axis=-1)
    return jnp.where(wanted, loss, 0), likeliest & wanted


def temporaries() -> int:
    """Bytes that the compiled step holds beside its arguments and results."""
    target = find_target(TOPOLOGY)
    config = recipe(ROWS_PER_CHIP * target.size)
    lowered = lower_step(config, make_mesh(config.mesh, target.devices), batch_shapes(config))
    return lowered.compile(QUICK).memory_analysis().temp_size_in_bytes


def main() -> None:
    found = {"as it is": temporaries()}
    before = objectives.cross_entropy
    objectives.cross_entropy = plain_cross_entropy
    found["plain cross-entropy"] = temporaries()
    decoder.attend = encoder.attend = plain_attention
    found["plain cross-entropy and attention"] = temporaries()
    objectives.cross_entropy = before
    found["plain attention"] = temporaries()
    whole = found["plain cross-entropy and attention"]
    lines = [
        f"{TOPOLOGY}, {ROWS_PER_CHIP} rows of 2,048 tokens a chip, full recomputation:",
        "",
        "| step | temporaries of a chip, GiB | against all plain |",
        "|---|---|---|",
        *(f"| {name} | {x / 2**30:.2f} | {x / whole:.0%} |" for name, x in found.items()),
    ]
    replace_section("memory", lines, Path(__file__).parents[1] / "docs" / "plan.md")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
