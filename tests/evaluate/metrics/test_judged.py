"""What is read in a judge's answers."""

from __future__ import annotations

import pytest

from qa_jax.errors import InputError
from qa_jax.evaluate.metrics import find_metric
from qa_jax.evaluate.metrics.judged import air_bench_scores, first_number, mean_of_four, yes_or_no

# What AIR-Bench's cal_score.py made of these lines: three can be read, with means 7.0 and 7.3333.
LINES = ["8 7", "7 9", "8.5 7", "11 5", "9  8", "8 7.", "6 6\n"]


def rows(swapped: bool) -> list[dict]:
    return [
        {"id": str(i), "judgements": [{"text": line, "swapped": swapped}]}
        for i, line in enumerate(LINES)
    ]


def test_air_bench() -> None:
    read = [air_bench_scores({"text": line, "swapped": False}) is not None for line in LINES]
    assert read == [True, True, False, False, False, False, True]
    score, wins = find_metric("judge_air_bench"), find_metric("judge_air_bench_wins")
    assert score.of(rows(False)) == pytest.approx(7.3333, abs=5e-5)
    assert wins.of(rows(False)) == pytest.approx(1 / 3)
    assert score.of(rows(True)) == 7.0
    assert wins.of(rows(True)) == pytest.approx(1 / 3)


def test_both_orders_count_equally_though_fewer_are_read_of_one() -> None:
    both = [
        {"judgements": [{"text": "5 8", "swapped": False}, {"text": "4 6", "swapped": True}]},
        {"judgements": [{"text": "5 6", "swapped": False}, {"text": "?", "swapped": True}]},
    ]
    assert find_metric("judge_air_bench").of(both) == (7 + 4) / 2


def test_other_rules() -> None:
    assert first_number({"text": "Score: 4.5 of 5"}) == 4.5
    assert first_number({"text": "good"}) is None
    assert (yes_or_no({"text": "Yes."}), yes_or_no({"text": "No, yes"})) == (1.0, 0.0)
    assert yes_or_no({"text": "maybe"}) is None
    assert mean_of_four({"text": "a: 5\nb: 4\nc: x\nd: 1"}) == (5 + 4 + 1 + 3) / 20
    assert mean_of_four({"text": "fine"}) is None


def test_rows_that_were_not_judged() -> None:
    with pytest.raises(InputError, match="a: has not been judged; run qa-jax judge"):
        find_metric("judge_number").of([{"id": "a", "prediction": "x", "reference": "y"}])
