"""Memory saved by chunked attention and cross-entropy, according to the compiler.

    python benchmarks/plan_memory.py

The 8.4B step at one batch size, with chunked and unchunked attention and cross-entropy, compiled
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

from qa_jax.model import AttentionMask, decoder, encoder
from qa_jax.model.attention.mask import dense_mask
from qa_jax.parallel import make_mesh
from qa_jax.plan import find_target
from qa_jax.plan.compiled import LOW_EFFORT_OPTIONS
from qa_jax.plan.estimate import batch_shapes
from qa_jax.plan.plan import lower_step
from qa_jax.train.objectives import log_probs

TOPOLOGY, ROWS_PER_CHIP = "v5p:4x4x4", 4


def plain_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, *_: Any, **__: Any
) -> jax.Array:
    """All scores at once, as `jax.nn.dot_product_attention` computes them."""
    dense = dense_mask(mask)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=dense, scale=1.0, implementation="xla")


def plain_cross_entropy(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, loss_mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """All logits at once."""
    logits = jnp.einsum("btd,dv->btv", hidden, kernel, preferred_element_type=jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = jax.nn.logsumexp(logits, axis=-1) - picked
    is_argmax = picked >= jnp.max(logits, axis=-1)
    return jnp.where(loss_mask, loss, 0), is_argmax & loss_mask


def temporaries() -> int:
    """Temporary memory of the compiled step."""
    target = find_target(TOPOLOGY)
    config = recipe(ROWS_PER_CHIP * target.num_devices)
    lowered = lower_step(config, make_mesh(config.mesh, target.devices), batch_shapes(config))
    return lowered.compile(LOW_EFFORT_OPTIONS).memory_analysis().temp_size_in_bytes


def main() -> None:
    found = {"chunked (default)": temporaries()}
    before = log_probs.cross_entropy
    log_probs.cross_entropy = plain_cross_entropy
    found["unchunked cross-entropy"] = temporaries()
    decoder.dot_product_attention = encoder.dot_product_attention = plain_attention
    found["unchunked cross-entropy and attention"] = temporaries()
    log_probs.cross_entropy = before
    found["unchunked attention"] = temporaries()
    unchunked = found["unchunked cross-entropy and attention"]
    lines = [
        f"{TOPOLOGY}, {ROWS_PER_CHIP} rows of 2,048 tokens per chip, full remat:",
        "",
        "| step | temporaries per chip, GiB | relative to unchunked attention and loss |",
        "|---|---|---|",
        *(f"| {name} | {x / 2**30:.2f} | {x / unchunked:.0%} |" for name, x in found.items()),
    ]
    replace_section("memory", lines, Path(__file__).parents[1] / "docs" / "plan.md")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
