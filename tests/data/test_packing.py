"""First-fit packing."""

from __future__ import annotations

import numpy as np

from qa_jax.data.packing import clips_per_row, first_fit


def test_first_fit() -> None:
    assert first_fit([(6, 1), (5, 1), (4, 1), (5, 1), (20, 1), (1, 0)], (10, 2)) == [
        (0, 2),
        (1, 3),
        (4,),
        (5,),
    ]
    sizes = [(int(n), 1) for n in np.random.default_rng(0).integers(20, 130, 5000)]
    rows = first_fit(sizes, (1024, clips_per_row(sizes, 1024)))
    assert sorted(i for row in rows for i in row) == list(range(5000))
    lengths = [sum(sizes[i][0] for i in row) for row in rows]
    assert max(lengths) <= 1024 and sum(lengths) / (1024 * len(rows)) > 0.95
