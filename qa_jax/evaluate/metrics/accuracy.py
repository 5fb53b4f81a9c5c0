"""Accuracy of labels, by the authors' rule and by a lenient one; macro F1 is beside it."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from qa_jax.config import JsonDict
from qa_jax.evaluate.metrics.base import Metric, Rows, mean


def accuracy_of(title: str, is_correct: Callable[[JsonDict], bool | None]) -> Metric:
    """Fraction of rows that are correct, among those for which the rule does not return None."""

    def statistics(rows: Rows) -> Float[np.ndarray, "rows 2"]:
        marks = [is_correct(row) for row in rows]
        counts = [(bool(mark), mark is not None) for mark in marks]
        return np.array(counts, float).reshape(-1, 2)

    return Metric(title, statistics, mean)


def is_exact(row: JsonDict) -> bool:
    """The authors' rule for MELD and VocalSound: equal, but for spaces in front of the answer."""
    prediction: str = row["prediction"]
    return bool(row["reference"] == prediction.lstrip())


def is_equal(row: JsonDict) -> bool:
    """Equal but for surrounding spaces."""
    return bool(row["reference"].strip() == row["prediction"].strip())


def is_lenient(row: JsonDict) -> bool:
    """Equal but for case, punctuation and spaces."""
    return plain_label(row["reference"]) == plain_label(row["prediction"])


def plain_label(text: str) -> str:
    """A label's letters and digits in lower case."""
    return "".join(re.findall(r"\w", text.lower()))
