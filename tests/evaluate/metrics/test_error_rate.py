"""Error rates against values worked out by hand."""

from __future__ import annotations

import pytest

from qa_jax.evaluate.metrics import find_metric, metric_of_texts
from qa_jax.evaluate.metrics.error_rate import align, characters, mixed


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
        (["", "a b"], ["c", "a b"], 0.5),
    ],
)
def test_words(references: list[str], predictions: list[str], expected: float) -> None:
    assert metric_of_texts("wer", references, predictions) == expected


def test_characters() -> None:
    assert characters("ab c\u0301") == ["a", "b", "\u0107"]
    assert metric_of_texts("cer", ["今天 好"], ["今天很好"]) == pytest.approx(1 / 3)


def test_mixed_scripts() -> None:
    assert mixed("今天 play 音乐ok") == ["今", "天", "play", "音", "乐", "ok"]
    # On spaces the whole sentence would be one wrong word.
    assert metric_of_texts("mer", ["今天 play 音乐"], ["今天 play 音月"]) == 1 / 5
    assert metric_of_texts("wer", ["今天play音乐"], ["今天play音月"]) == 1


def test_compounds() -> None:
    rows = [{"reference": "a white paper here", "prediction": "a whitepaper hear"}]
    assert find_metric("wer_compounds").of(rows) == 1 / 4
    assert find_metric("wer").of(rows) == 3 / 4


def test_alignments_lead_from_one_to_the_other() -> None:
    edits = align("a b c d".split(), "a x c d e".split())
    assert [(e.kind, e.reference, e.prediction) for e in edits] == [
        ("equal", ["a"], ["a"]),
        ("replace", ["b"], ["x"]),
        ("equal", ["c", "d"], ["c", "d"]),
        ("insert", [], ["e"]),
    ]
