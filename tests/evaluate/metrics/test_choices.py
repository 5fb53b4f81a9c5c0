"""Which choice an answer names, by AIR-Bench's, MMAU's and our own rule."""

from __future__ import annotations

import random

import pytest

from qa_jax.errors import InputError
from qa_jax.evaluate.metrics import find_metric
from qa_jax.evaluate.metrics.choices import (
    air_bench_letter,
    is_mmau_correct,
    letter_of,
    named_letter,
)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("Because of the rain", "B"),
        ("The answer is C.", "C"),
        (" \nD. a dog", "D"),
        ("the dog", None),
        ("None", None),
        ("", None),
        ("x", None),
    ],
)
def test_air_bench(answer: str, letter: str | None) -> None:
    assert air_bench_letter(answer) == letter


def test_air_bench_leaves_out_what_it_cannot_read() -> None:
    choices = ["rain", "wind"]
    rows = [
        {"reference": "wind", "prediction": answer, "choices": choices}
        for answer in ("B", "A", "it is windy")
    ]
    assert find_metric("air_bench").of(rows) == 0.5
    with pytest.raises(InputError, match="q7: the reference is none of its choices"):
        letter_of({"id": "q7", "reference": "snow", "choices": choices})


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [
        ("A dog barks", True),
        ("the dog barks at night", False),
        ("dog", False),
        ("a dog barks, not a cat", False),
        ("", False),
        ("(B) A DOG BARKS.", True),
    ],
)
def test_mmau(answer: str, is_correct: bool) -> None:
    choices = ["a cat meows", "a dog barks", "a bird sings"]
    row = {"reference": "a dog barks", "prediction": answer, "choices": choices}
    assert is_mmau_correct(row) == is_correct


def test_mmau_on_a_thousand_rows() -> None:
    """The number that MMAU's evaluation.py gives for the same rows."""
    rng = random.Random("mmau")
    words = "a the dog cat man woman piano guitar rain barks sings two 3".split()
    count = 0
    for _ in range(1000):
        choices = [" ".join(rng.sample(words, rng.randint(1, 3))) for _ in range(4)]
        said = rng.choice([*choices, " ".join(rng.sample(words, 4))])
        prefix = rng.choice(["", "The answer is ", "(A) ", "I hear: "])
        row = {"reference": choices[0], "choices": choices, "prediction": f"{prefix}{said}."}
        count += is_mmau_correct(row)
    assert count == MMAU_COUNT


MMAU_COUNT = 177


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("The correct answer is (C).", "C"),
        ("I would choose option D because A is wrong", "D"),
        ("A or B", None),
        ("I'd say so", None),
        ("Answer: B) rain", "B"),
    ],
)
def test_our_own(answer: str, letter: str | None) -> None:
    assert named_letter(answer) == letter
