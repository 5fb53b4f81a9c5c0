"""Scores against values worked out by hand."""

from __future__ import annotations

import pytest

from qa_jax.evaluate import exact_match, normalize, word_error_rate


def test_words() -> None:
    assert normalize("Don't stop — it's GOOD, twice!") == ["don't", "stop", "it's", "good", "twice"]


@pytest.mark.parametrize(
    ("references", "predictions", "expected"),
    [
        (["a b c d"], ["a b c d"], 0.0),
        (["a b c d"], ["A, b. c d!"], 0.0),
        (["a b c d"], ["a x c"], 0.5),
        (["a", "b c d"], ["", "b c d e"], 0.5),
        (["a"], ["a b c d"], 3.0),
        ([""], [""], 0.0),
        ([""], ["a"], 1.0),
    ],
)
def test_word_error_rate(references: list[str], predictions: list[str], expected: float) -> None:
    assert word_error_rate(references, predictions) == expected


def test_exact_match() -> None:
    assert exact_match(["a man", "yes"], [" a man", "Yes"]) == 0.5
