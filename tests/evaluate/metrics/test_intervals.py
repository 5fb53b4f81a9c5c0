"""Bootstrap intervals and paired comparisons, against what is known of their distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qa_jax.evaluate.metrics import compare, find_metric, interval

METRIC = find_metric("exact_match")


def rows(right: np.ndarray) -> list[dict]:
    return [{"reference": "a", "prediction": "a" if ok else "b"} for ok in right]


def test_an_interval_is_that_of_a_proportion() -> None:
    right = np.arange(1000) % 5 != 0
    value, low, high = interval(METRIC, rows(right))
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert value == 0.8
    assert low == pytest.approx(0.8 - half, abs=0.004)
    assert high == pytest.approx(0.8 + half, abs=0.004)
    assert interval(METRIC, rows(right)) == (value, low, high)  # drawn from a seed


def test_pairs_tell_more_than_intervals() -> None:
    """The second model is right wherever the first is, and in 2 % more: the intervals overlap,
    yet the difference is certain."""
    rng = np.random.default_rng(0)
    first = rng.random(1000) < 0.6
    second = first | (rng.random(1000) < 0.05)
    result = compare(METRIC, rows(first), rows(second))
    assert interval(METRIC, rows(first)).high > interval(METRIC, rows(second)).low
    assert result.difference.value == pytest.approx(np.mean(second) - np.mean(first))
    assert result.difference.low > 0 and result.p_value < 0.01
    reverse = compare(METRIC, rows(second), rows(first))
    assert reverse.difference.value == -result.difference.value
    assert reverse.difference.high < 0 and reverse.p_value < 0.01


def test_no_difference_is_not_significant() -> None:
    right = np.arange(200) % 2 == 0
    same = compare(METRIC, rows(right), rows(right))
    assert same.difference == (0, 0, 0) and same.p_value == 1
    other = compare(METRIC, rows(right), rows(~right))
    assert other.difference.value == 0 and other.p_value > 0.5
