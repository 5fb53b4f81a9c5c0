"""Records into rows: first-fit, so that little of a row is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_OPEN = 256
"""Rows that are tried for each record; more of them pack no tighter and take longer."""


def first_fit(sizes: Sequence[tuple[int, int]], capacity: tuple[int, int]) -> list[tuple[int, ...]]:
    """Rows of indices into `sizes`, each record in the first row that has room for it.

    Args:
        sizes: (tokens, clips) of each record, in the order they are to be taken.
        capacity: (tokens, clips) that a row holds. A record larger than that has a row alone.
    """
    rows: list[list[int]] = []
    free = np.zeros((_OPEN, 2), np.int64)  # of the latest rows, in a ring
    for i, size in enumerate(sizes):
        fits = np.all(free >= size, axis=1).ravel()
        slot = int(fits.argmax())
        if not fits[slot]:
            slot = len(rows) % _OPEN
            rows.append([])
            free[slot] = capacity
        latest = len(rows) - 1 - (len(rows) - 1 - slot) % _OPEN
        rows[latest].append(i)
        free[slot] -= size
    return [tuple(row) for row in rows]


def clips_per_row(sizes: Sequence[tuple[int, int]], tokens: int) -> int:
    """Clips for which a row of so many tokens has room, so that few clips and few tokens lie idle:
    what records of average length bring, and a sixth more."""
    total, clips = (sum(column) for column in zip(*sizes, strict=True))
    return max(1, max(n for _, n in sizes), round(7 / 6 * clips * tokens / total))
