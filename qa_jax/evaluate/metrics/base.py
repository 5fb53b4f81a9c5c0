"""What a metric is: statistics of each row, and a value of their sum.

So a metric of a corpus, of a part of it, and of a bootstrap sample are the same two functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qa_jax.config import JsonDict

Rows = Sequence[JsonDict]
"""Rows of a file of answers: "reference" and "prediction", and what else a metric says it needs."""

Statistics = Callable[[Rows], Float[np.ndarray, "rows statistics"]]
Value = Callable[[Float[np.ndarray, "*samples statistics"]], Float[np.ndarray, "*samples"]]


class Metric(NamedTuple):
    """A metric of answers.

    Attributes:
        title: how it is printed.
        statistics: of each row.
        value: of sums of rows' statistics; NaN where nothing was counted.
        is_percent: whether it is printed times 100.
        higher_is_better: as it says.
    """

    title: str
    statistics: Statistics
    value: Value
    is_percent: bool = True
    higher_is_better: bool = True

    def of(self, rows: Rows) -> float:
        """The metric of some rows."""
        return float(self.value(self.statistics(rows).sum(axis=0)))


def ratio(sums: Float[np.ndarray, "*samples 2"]) -> Float[np.ndarray, "*samples"]:
    """The first statistic over the second; where that is 0, 1 if there is any of the first."""
    numerator, denominator = sums[..., 0], sums[..., 1]
    whole = np.maximum(denominator, 1)
    return np.asarray(np.where(denominator > 0, numerator / whole, numerator > 0), float)


def mean(sums: Float[np.ndarray, "*samples 2"]) -> Float[np.ndarray, "*samples"]:
    """A sum over a count; NaN if nothing was counted."""
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])
