"""First-fit packing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qa_jax.data import packing
from qa_jax.data.packing import clips_per_row, pack


def rows_of(sizes: list[tuple[int, int]], capacity: tuple[int, int]) -> list[list[int]]:
    members, starts = pack(np.array(sizes, np.int32), capacity)
    return [members[a:b].tolist() for a, b in itertools.pairwise(starts)]


def test_first_fit() -> None:
    assert rows_of([(6, 1), (5, 1), (4, 1), (5, 1), (20, 1), (1, 0)], (10, 2)) == [
        [0, 2],
        [1, 3],
        [4],
        [5],
    ]


@pytest.mark.parametrize("group", [16_384, 1_000])
def test_rows_are_full(monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(packing, "_GROUP", group)
    sizes = [(int(n), 1) for n in np.random.default_rng(0).integers(20, 130, 5_500)]
    rows = rows_of(sizes, (1024, clips_per_row(np.array(sizes), 1024)))
    assert sorted(i for row in rows for i in row) == list(range(5_500))
    lengths = [sum(sizes[i][0] for i in row) for row in rows]
    assert max(lengths) <= 1024 and sum(lengths) / (1024 * len(rows)) > 0.95
    for first in range(0, 5_500, group):
        alone = rows_of(sizes[first : first + group], (1024, clips_per_row(np.array(sizes), 1024)))
        assert [first + i for i in alone[0]] in rows, "a group is packed by itself"
