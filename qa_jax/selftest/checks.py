"""`qa-jax selftest`: numerical self-checks to run on new hardware.

A small random model computes the same values in two ways, on the available devices of all
processes. Nothing is downloaded; compiling takes a few minutes.
"""

from __future__ import annotations

import functools
import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.model import AttentionMask
from qa_jax.model.attention import dot_product_attention
from qa_jax.parallel import (
    gather_texts,
)
from qa_jax.selftest.small_model import SmallModel, Worst, meshes, tree_error
from qa_jax.typing import PyTree


class Result(NamedTuple):
    """A check: what was compared, its largest error of any process, where that was, and the largest
    allowed error."""

    name: str
    error: float
    where: str
    limit: float
    seconds: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


def selftest(directory: str = "") -> Iterator[Result]:
    """Runs every check in all processes; a failure does not stop the others.

    Args:
        directory: shared by all processes, for the check of checkpoints; may be empty for one
            process.
    """
    model = SmallModel()
    checks: list[tuple[str, float, Callable[[], float | Worst]]] = [
        ("every device computes the same bits", 0.0, model.devices),
        ("log-mel against float64", 2e-5, model.log_mel),
        ("a short bucket against the 30 s window", 1e-5, model.bucket),
        ("a row in a batch against a batch of that row", 1e-5, model.single_row),
        ("cached decoding against forward passes of whole rows", 0.0, model.cached),
        ("packed rows against unpacked rows", 1e-5, model.packed),
        ("scanned layers against unrolled layers", 1e-5, model.unrolled),
        ("rematerialised layers against stored activations", 1e-5, model.recomputed),
        ("two micro-batches against one batch", 1e-5, model.accumulated),
        ("bfloat16 against float32, loss", 2e-2, model.bfloat16),
    ]
    kernel = {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend())
    if kernel is not None:
        name = f"{kernel} attention against chunked attention, bfloat16"
        checks.append((name, 2e-2, lambda: kernel_error(kernel)))
    for sizes in meshes(jax.device_count()):
        name = f"mesh {'x'.join(map(str, sizes))} against one device, loss and gradients"
        checks.append((name, 1e-4, functools.partial(model.on_mesh, sizes)))
    if directory or jax.process_count() == 1:
        name = "a checkpoint restored on other meshes"
        checks.append((name, 0.0, lambda: model.restored(directory)))
    for name, limit, check in checks:
        started = time.perf_counter()
        error, where = worst_of_all(check)
        yield Result(name, error, where, limit, time.perf_counter() - started)


def worst_of_all(check: Callable[[], float | Worst]) -> tuple[float, str]:
    """The largest error of a check in any process, and its process, host and device. NaN and an
    exception are infinitely large."""
    try:
        found = check()
        error, device = found if isinstance(found, Worst) else (found, str(jax.local_devices()[0]))
    except Exception as failed:  # a failure of one process must not leave the others waiting
        if jax.process_count() == 1:
            raise
        error, device = math.inf, " ".join(str(failed).split())[:200]
    error = math.inf if math.isnan(error) else error
    row = [error, f"process {jax.process_index()} on {socket.gethostname()}, {device}"]
    rows = [json.loads(text) for text in gather_texts(json.dumps(row))]
    worst = max(rows, key=lambda row: row[0])
    return float(worst[0]), str(worst[1])


def kernel_error(kernel: str) -> float:
    """Attention and its gradients by a fused kernel against chunked attention: segments, padding,
    grouped heads."""
    rng = np.random.default_rng(0)
    b, t, h = 2, 256, 64
    arrays = [jnp.asarray(rng.standard_normal((b, t, n, h)), jnp.bfloat16) for n in (4, 2, 2)]
    arrays[0] = arrays[0] * h**-0.5
    segments = np.ones((b, t), np.int32)
    segments[0, 100:] = 2
    segments[1, 200:] = 0
    is_token = jnp.asarray(segments > 0)[:, :, None, None]
    errors = []
    for causal in (False, True):
        mask = AttentionMask(jnp.asarray(segments), jnp.asarray(segments), causal)

        def run(implementation: str, mask: AttentionMask = mask) -> PyTree:
            def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
                out = dot_product_attention(q, k, v, mask, implementation=implementation)
                out = jnp.where(is_token, out, 0)
                return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

            return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)

        errors.append(tree_error(run(kernel), jax.tree.map(np.asarray, run("chunked"))))
    return max(errors)
