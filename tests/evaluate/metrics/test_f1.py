"""Macro F1 against scikit-learn's."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import accuracy_score, f1_score

from qa_jax.evaluate.metrics import interval, metric_of_texts
from qa_jax.evaluate.metrics.f1 import macro_f1

CLASSES = ["neutral", "joy", "anger", "sadness", "surprise", "fear", "disgust"]


def test_it_is_scikit_learns() -> None:
    rng = random.Random(0)
    references = [rng.choice(CLASSES[:1] * 5 + CLASSES) for _ in range(1000)]
    answers = [r if rng.random() < 0.5 else rng.choice([*CLASSES, "no idea"]) for r in references]
    expected = f1_score(references, answers, labels=CLASSES, average="macro")
    assert metric_of_texts("macro_f1", references, answers) == pytest.approx(expected, abs=1e-12)
    accuracy = accuracy_score(references, answers)
    assert metric_of_texts("accuracy", references, answers) == pytest.approx(accuracy, abs=1e-12)
    rows = [{"reference": r, "prediction": a} for r, a in zip(references, answers, strict=True)]
    value, low, high = interval(macro_f1(), rows)
    assert low < value < high
