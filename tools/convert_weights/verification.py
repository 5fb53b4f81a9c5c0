"""`qa-jax convert verify`: bit-exact comparison of every tensor of two directories."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert_weights.hub import resolve_source
from convert_weights.job import NUM_THREADS, Checksum, total_checksum
from convert_weights.weights import Weights, open_weights
from qa_jax import hf
from qa_jax.errors import InputError
from qa_jax.terminal import Progress


class Row(NamedTuple):
    """The comparison of a tensor.

    Attributes:
        name: released name.
        shape: in Hugging Face's layout.
        dtype: as stored on both sides, "float32 -> bfloat16" where they differ.
        checksum: SHA-256 of the second directory's bytes in Hugging Face's layout.
        num_differing: number of elements with different bits.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    checksum: str
    num_differing: int


def verify(
    first: str | Path, second: str | Path, progress: Progress | None = None
) -> tuple[list[Row], str]:
    """Compares two directories of either kind; returns a row for each tensor and one checksum.

    If the dtypes differ, the first is cast to the second's, as by a conversion with `dtype`, before
    the bits are compared.
    """
    a, b = open_weights(resolve_source(first)), open_weights(resolve_source(second))
    only = {n: w for w, other in ((a, b), (b, a)) for n in w.tensors if n not in other.tensors}
    hf.raise_problems(
        f"{first} and {second}",
        [f"{n}: only in {w.directory}" for n, w in only.items()],
        "compare their configurations",
    )
    names = [n for n in a.tensors if n in b.tensors]
    sizes = {n: math.prod(a.tensors[n].shape) * b.dtype(n).itemsize for n in names}
    done, rows = 0, []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for row in pool.map(lambda name: _compare(name, a, b), names):
            rows.append(row)
            done += sizes[row.name]
            if progress:
                progress(done, sum(sizes.values()))
    return rows, total_checksum({r.name: r.checksum for r in rows})


def _compare(name: str, a: Weights, b: Weights) -> Row:
    digest, differing, target = Checksum(), 0, b.dtype(name)
    for x, y in zip(a.read(a.tensors[name]), b.read(b.tensors[name]), strict=True):
        differing += int(np.count_nonzero(_bits(x.astype(target, copy=False)) != _bits(y)))
        digest.add(y)
    dtypes = dict.fromkeys([a.dtype(name).name, target.name])
    shape = a.tensors[name].hf_shape
    return Row(name, shape, " -> ".join(dtypes), digest.value, differing)


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))


def print_report(rows: list[Row], checksum: str) -> None:
    """Prints the table, and raises InputError if any tensor differs."""
    width = max(len(r.name) for r in rows)
    for r in rows:
        shape = "x".join(map(str, r.shape))
        state = "equal" if not r.num_differing else f"{r.num_differing:,} elements differ"
        print(f"{r.name:{width}}  {shape:>12}  {r.dtype:8}  {r.checksum[:16]}  {state}")
    wrong = [r.name for r in rows if r.num_differing]
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(rows)} tensors",
            f"differ: {', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}",
            "convert again",
        )
    print(f"{len(rows)} tensors, all bits equal; checksum of all {checksum}")
