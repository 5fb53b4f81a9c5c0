"""Macro F1: the mean over classes of the harmonic mean of precision and recall."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from qa_jax.evaluate.metrics.accuracy import plain_label
from qa_jax.evaluate.metrics.base import Metric, Rows


def macro_f1() -> Metric:
    """Macro F1 over the references' labels, compared without case and punctuation.

    An answer that is none of the labels is a class of its own, which has no part in the mean: the
    row counts as missed by its label alone.
    """
    return Metric("macro F1", _statistics, _value)


def _statistics(rows: Rows) -> Float[np.ndarray, "rows statistics"]:
    """Of each class: hits, rows that have it, answers that give it."""
    references = [plain_label(row["reference"]) for row in rows]
    predictions = [plain_label(row["prediction"]) for row in rows]
    classes = sorted(set(references))
    column = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(rows), len(classes), 3))
    for row, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
        counts[row, column[reference], 1] = 1
        if prediction in column:
            counts[row, column[prediction], 2] = 1
        counts[row, column[reference], 0] = reference == prediction
    return counts.reshape(len(rows), -1)


def _value(sums: Float[np.ndarray, "*samples statistics"]) -> Float[np.ndarray, "*samples"]:
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    hits, given, answered = counts[..., 0], counts[..., 1], counts[..., 2]
    with np.errstate(invalid="ignore"):
        scores = np.where(given + answered > 0, 2 * hits / (given + answered), np.nan)
    # A class that a bootstrap sample lacks has no part in its mean.
    present = ~np.isnan(scores)
    total = np.where(present, scores, 0.0).sum(axis=-1)
    return np.asarray(total / np.maximum(present.sum(axis=-1), 1))
