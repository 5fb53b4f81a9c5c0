"""Packing of records into rows, by first-fit."""

from __future__ import annotations

import numpy as np

from qa_jax.typing import Int

_OPEN_ROWS = 256
"""Rows considered for each record; more of them pack no tighter and take longer."""
_GROUP = 16_384
"""Records that are packed together; groups of so many are packed at the same time."""


def pack(
    sizes: Int[np.ndarray, "records 2"], capacity: tuple[int, int]
) -> tuple[Int[np.ndarray, " records"], Int[np.ndarray, " starts"]]:
    """Rows of records, each record in the first row of its group with room for it.

    Args:
        sizes: (tokens, clips) of each record, in the order in which they are packed.
        capacity: (tokens, clips) of a row. A larger record gets a row of its own.

    Returns:
        Indices into `sizes`, row by row; and where each row's begin, and the end of the last.
    """
    num_groups = -(-len(sizes) // _GROUP)
    padded = np.zeros((num_groups * _GROUP, 2), np.int32)
    padded[: len(sizes)] = sizes
    rows = _first_fit(padded.reshape(num_groups, _GROUP, 2), min(len(sizes), _GROUP), capacity)
    rows += np.concatenate([[0], np.cumsum(rows.max(axis=1) + 1)[:-1]]).astype(np.int32)[:, None]
    row_of = rows.reshape(-1)[: len(sizes)]
    members = np.argsort(row_of, kind="stable").astype(np.int32)
    counts = np.bincount(row_of)
    return members, np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def _first_fit(
    sizes: Int[np.ndarray, "groups records 2"], num_records: int, capacity: tuple[int, int]
) -> Int[np.ndarray, "groups records"]:
    """The row of each of the first records of each group, counted from 0 in its group."""
    groups = np.arange(len(sizes))
    rows = np.zeros(sizes.shape[:2], np.int32)
    free = np.zeros((len(sizes), _OPEN_ROWS, 2), np.int32)  # of the latest rows, a ring buffer
    num_rows = np.zeros(len(sizes), np.int32)
    for i in range(num_records):
        size = sizes[:, i]
        fits = (free[..., 0] >= size[:, :1]) & (free[..., 1] >= size[:, 1:])
        slot = fits.argmax(axis=1)
        is_new = ~fits[groups, slot]
        slot[is_new] = num_rows[is_new] % _OPEN_ROWS
        free[groups[is_new], slot[is_new]] = capacity
        num_rows += is_new
        rows[:, i] = num_rows - 1 - (num_rows - 1 - slot) % _OPEN_ROWS
        free[groups, slot] -= size
    return rows


def clips_per_row(sizes: Int[np.ndarray, "records 2"], num_tokens: int) -> int:
    """Clips of a row of so many tokens, balancing clip and token padding: those of records of
    average length, and a sixth more."""
    total, clips = sizes.sum(axis=0, dtype=np.int64).tolist()
    return max(1, int(sizes[:, 1].max()), round(7 / 6 * clips * num_tokens / total))
