"""Bootstrap confidence intervals, and the paired comparison of two models.

Rows are drawn with replacement (Bisani and Ney 2004, "Bootstrap estimates for confidence intervals
in ASR performance evaluation"); for a comparison, the same rows of both models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qa_jax.evaluate.metrics.base import Metric, Rows

NUM_SAMPLES = 1000
_SAMPLES_AT_ONCE = 50


class Interval(NamedTuple):
    """A value, and the 2.5th and 97.5th percentile of its bootstrap samples."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A metric of a second model less that of a first, on the same rows.

    Attributes:
        difference: with its interval.
        p_value: twice the share of samples on the other side of no difference; at most 1.
        num_rows: how many rows both have.
    """

    difference: Interval
    p_value: float
    num_rows: int


def interval(metric: Metric, rows: Rows, seed: int = 0) -> Interval:
    """A metric of some rows with its 95 % confidence interval."""
    statistics = metric.statistics(rows)
    value = float(metric.value(statistics.sum(axis=0)))
    samples = metric.value(_samples(statistics, seed))
    return Interval(value, *_percentiles(samples))


def compare(metric: Metric, first: Rows, second: Rows, seed: int = 0) -> Comparison:
    """A metric of the second rows less that of the first; both are in the same order."""
    # Together, so that a metric that looks at all rows counts the same in both.
    statistics = metric.statistics([*first, *second])
    ours, theirs = statistics[: len(first)], statistics[len(first) :]
    difference = float(metric.value(theirs.sum(axis=0)) - metric.value(ours.sum(axis=0)))
    samples = metric.value(_samples(theirs, seed)) - metric.value(_samples(ours, seed))
    samples = samples[~np.isnan(samples)]
    other_side = np.mean(samples <= 0) if difference > 0 else np.mean(samples >= 0)
    p_value = min(1.0, 2 * float(other_side)) if len(samples) else float("nan")
    return Comparison(Interval(difference, *_percentiles(samples)), p_value, len(first))


def _percentiles(samples: Float[np.ndarray, " samples"]) -> tuple[float, float]:
    known = samples[~np.isnan(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def _samples(
    statistics: Float[np.ndarray, "rows statistics"], seed: int
) -> Float[np.ndarray, "samples statistics"]:
    """The statistics of as many rows as there are, drawn with replacement and added up."""
    return np.concatenate(list(_sums(statistics, np.random.default_rng(seed))))


def _sums(
    statistics: Float[np.ndarray, "rows statistics"], rng: np.random.Generator
) -> Iterator[Float[np.ndarray, "samples statistics"]]:
    num_rows = len(statistics)
    for _ in range(NUM_SAMPLES // _SAMPLES_AT_ONCE):
        drawn = rng.integers(num_rows, size=(_SAMPLES_AT_ONCE, num_rows))
        counts = np.stack([np.bincount(rows, minlength=num_rows) for rows in drawn])
        yield counts.astype(float) @ statistics
