"""Packing of records into rows, by first-fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_OPEN_ROWS = 256
"""Rows considered for each record; more of them pack no tighter and take longer."""


def first_fit(sizes: Sequence[tuple[int, int]], capacity: tuple[int, int]) -> list[tuple[int, ...]]:
    """Rows of indices into `sizes`, each record in the first row with room for it.

    Args:
        sizes: (tokens, clips) of each record, in the order in which they are packed.
        capacity: (tokens, clips) of a row. A larger record gets a row of its own.
    """
    rows: list[list[int]] = []
    free = np.zeros((_OPEN_ROWS, 2), np.int64)  # of the latest rows, a ring buffer
    for i, size in enumerate(sizes):
        fits = np.all(free >= size, axis=1).ravel()
        slot = int(fits.argmax())
        if not fits[slot]:
            slot = len(rows) % _OPEN_ROWS
            rows.append([])
            free[slot] = capacity
        latest = len(rows) - 1 - (len(rows) - 1 - slot) % _OPEN_ROWS
        rows[latest].append(i)
        free[slot] -= size
    return [tuple(row) for row in rows]


def clips_per_row(sizes: Sequence[tuple[int, int]], num_tokens: int) -> int:
    """Clips of a row of so many tokens, balancing clip and token padding: those of records of
    average length, and a sixth more."""
    total, clips = (sum(column) for column in zip(*sizes, strict=True))
    return max(1, max(n for _, n in sizes), round(7 / 6 * clips * num_tokens / total))
