"""Scores that another model gave; `qa-jax judge` asks it."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from qa_jax.config import JsonDict
from qa_jax.errors import InputError
from qa_jax.evaluate.metrics.base import Metric, Rows

Rule = Callable[[JsonDict], float | None]
"""The score that a judge's answer gives; None if none can be read, which is not counted."""


def judged(name: str) -> Metric:
    """The mean of a judge's scores by one of `JUDGE_RULES`; if it was asked in both orders, the
    mean of the two orders' means, as AIR-Bench has it."""
    title, rule, is_percent = JUDGE_RULES[name]

    def statistics(rows: Rows) -> Float[np.ndarray, "rows 4"]:
        counts = np.zeros((len(rows), 4))
        for own, row in zip(counts, rows, strict=True):
            if "judgements" not in row:
                raise InputError(
                    row.get("id", "row"), "has not been judged", "run qa-jax judge ANSWERS"
                )
            for judgement in row["judgements"]:
                score, place = rule(judgement), 2 if judgement["swapped"] else 0
                if score is not None:
                    own[place : place + 2] += score, 1
        return counts

    return Metric(title, statistics, _value, is_percent)


def _value(sums: Float[np.ndarray, "*samples 4"]) -> Float[np.ndarray, "*samples"]:
    totals, counts = sums[..., ::2], sums[..., 1::2]
    with np.errstate(invalid="ignore"):
        means = totals / counts
        asked = counts > 0
        return np.asarray(np.where(asked, means, 0).sum(axis=-1) / asked.sum(axis=-1))


def air_bench_score(judgement: JsonDict) -> float | None:
    """The model's score by AIR-Bench's rule, see `air_bench_scores`."""
    found = air_bench_scores(judgement)
    return None if found is None else float(found[0])


def air_bench_win(judgement: JsonDict) -> float | None:
    """Whether the model's score is above the reference's, by the same rule."""
    found = air_bench_scores(judgement)
    return None if found is None else float(found[0] > found[1])


def air_bench_scores(judgement: JsonDict) -> tuple[int, int] | None:
    """The model's and the reference's score by the rule of AIR-Bench's `cal_score.py`: the judge's
    answer is two whole numbers of at most 10, the reference's first unless they were swapped."""
    pieces = judgement["text"].strip().replace("\n", "").split(" ")
    try:
        scores = [int(piece) for piece in pieces]
    except ValueError:
        return None
    if len(scores) != 2 or max(scores) > 10:
        return None
    reference, model = reversed(scores) if judgement["swapped"] else scores
    return model, reference


def first_number(judgement: JsonDict) -> float | None:
    """The first number of the judge's answer."""
    found = re.search(r"\d+(?:\.\d+)?", judgement["text"])
    return float(found[0]) if found else None


def yes_or_no(judgement: JsonDict) -> float | None:
    """Whether the judge says yes."""
    found = re.search(r"\b(yes|no)\b", judgement["text"].lower())
    return float(found[1] == "yes") if found else None


def mean_of_four(judgement: JsonDict) -> float | None:
    """MMAU-Pro's rule: four marks of 1 to 5, of which a missing one is 3, as a fraction of 5."""
    found = [float(mark) for mark in re.findall(r":\s*([1-5])\b", judgement["text"])][:4]
    return None if not found else (sum(found) + 3 * (4 - len(found))) / 20


JUDGE_RULES: dict[str, tuple[str, Rule, bool]] = {
    "judge_air_bench": ("judge's score of 10", air_bench_score, False),
    "judge_air_bench_wins": ("better than the reference", air_bench_win, True),
    "judge_number": ("judge's score of 5", first_number, False),
    "judge_yes_no": ("right by the judge", yes_or_no, True),
    "judge_four_marks": ("judge's marks", mean_of_four, True),
}
"""Titles, rules, and whether it is a percentage."""

JUDGE_TASKS = {
    "judge_number": "Score the answer from 1 (bad) to 5 (perfect). Reply with the number alone.",
    "judge_yes_no": 'Is the answer right? Reply with "Yes" or "No" alone.',
}
"""What a recipe's {task} stands for."""
