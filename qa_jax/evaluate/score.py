"""Scores files of answers: a step of its own, so that a metric may change without new answers."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qa_jax.config import BenchmarkConfig, JsonDict
from qa_jax.errors import InputError
from qa_jax.evaluate.benchmarks import load_benchmark, metrics_of
from qa_jax.evaluate.metrics import Comparison, Interval, Metric, compare, find_metric, interval
from qa_jax.evaluate.metrics.error_rate import ERROR_RATES
from qa_jax.generate import read_rows

ALL = "all"
UNKNOWN = Interval(math.nan, math.nan, math.nan)
_CHINESE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


class Score(NamedTuple):
    """A metric of a subset.

    Attributes:
        subset: its name.
        metric: name of the metric.
        title: how the metric is printed.
        value: with its interval; percentages where the metric is one; `UNKNOWN` if the title says
            why.
        num_rows: rows that it is of.
        num_errors: rows without an answer, which have no part in it.
        reported: what others measured, by who did.
        higher_is_better: as it says.
    """

    subset: str
    metric: str
    title: str
    value: Interval
    num_rows: int
    num_errors: int
    reported: dict[str, float]
    higher_is_better: bool

    @property
    def is_known(self) -> bool:
        """Whether there is a number."""
        return not math.isnan(self.value.value)


class Scored(NamedTuple):
    """The scores of some answers, the rows that they are of, and the texts' normalizer."""

    title: str
    notes: str
    normalizer: str
    scores: list[Score]
    rows: list[JsonDict]


def answer_files(paths: Sequence[str | Path]) -> list[str]:
    """Files by their names or patterns; raises InputError for one that is not there."""
    files = []
    for path in map(str, paths):
        found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
        if not found or not Path(found[0]).is_file():
            raise InputError(path, "is not there", "give a file of answers")
        files += found
    return files


def read_answers(paths: Sequence[str | Path]) -> list[JsonDict]:
    """The rows of files of answers, see `answer_files`; parts of a run are joined by id.

    Raises InputError for a file that is not there, or an item that is answered twice.
    """
    files = answer_files(paths)
    rows: dict[tuple[str, str], JsonDict] = {}
    for file in files:
        for number, row in enumerate(_rows(file), start=1):
            key = row_key(row)
            if key in rows:
                raise InputError(f"{file}:{number}", f"{' '.join(key)} is answered twice")
            rows[key] = row
    if not rows:
        raise InputError(files[0], "contains no answers", "answer the benchmark first")
    return list(rows.values())


def _rows(file: str) -> list[JsonDict]:
    try:
        rows = read_rows(file)
    except ValueError as error:
        raise InputError(file, f"not JSON ({error})", "give a file of answers") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not {"prediction", "error"} & set(row):
            raise InputError(f"{file}:{number}", 'has neither "prediction" nor "error"')
    return rows


def row_key(row: JsonDict) -> tuple[str, str]:
    """A row's subset and id; of a manifest's, where its record is."""
    return str(row.get("subset", "")), str(row.get("id", row.get("source", "")))


def score(
    rows: Sequence[JsonDict],
    *,
    benchmark: str | None = None,
    metrics: Sequence[str] = (),
    normalizer: str | None = None,
    language: str | None = None,
) -> Scored:
    """Scores rows of answers, each subset apart and all of them together.

    Args:
        rows: of `read_answers`.
        benchmark: a recipe; by default the one that the rows name, if they name one.
        metrics: instead of the recipe's; without one, WER (MER for Chinese and Japanese) and exact
            match.
        normalizer: instead of the recipe's.
        language: of rows that do not say theirs.

    Raises:
        InputError: no row has an answer.
    """
    if all("error" in row for row in rows):
        raise InputError(
            "answers", f"none could be given; the first: {rows[0]['error']}", "repair them"
        )
    rows = _in_language(rows, language)
    recipe = _recipe(rows, benchmark, metrics, normalizer)
    subsets: dict[str, list[JsonDict]] = {name: [] for name in recipe.subsets}
    for row in rows:
        subsets.setdefault(str(row.get("subset", ALL)), []).append(row)
    subsets = {name: found for name, found in subsets.items() if found}
    scores = []
    for name, found in subsets.items():
        for metric in metrics or metrics_of(recipe, name):
            scores.append(_score(recipe, name, metric, found))
    scores += _averages(recipe, scores)
    if len(subsets) > 1 and len({metrics or metrics_of(recipe, name) for name in subsets}) == 1:
        first = (metrics or metrics_of(recipe, next(iter(subsets))))[:1]
        scores += [_score(recipe, ALL, name, list(rows)) for name in first if name != "bleu"]
    return Scored(recipe.title, recipe.notes, recipe.normalizer, scores, list(rows))


def _in_language(rows: Sequence[JsonDict], language: str | None) -> Sequence[JsonDict]:
    return [{"language": language, **row} for row in rows] if language else rows


def _recipe(
    rows: Sequence[JsonDict], name: str | None, metrics: Sequence[str], normalizer: str | None
) -> BenchmarkConfig:
    named = {str(row["benchmark"]) for row in rows if "benchmark" in row}
    if name is None and len(named) > 1:
        raise InputError("answers", f"of {', '.join(sorted(named))}", "score one at a time")
    found = name or next(iter(named), None)
    if found is None:
        texts = " ".join(str(row.get("reference", "")) for row in rows)
        rate = "mer" if _CHINESE.search(texts) else "wer"
        return BenchmarkConfig(
            metrics=tuple(metrics) or (rate, "exact_match"), normalizer=normalizer or "simple"
        )
    recipe = load_benchmark(found)
    return recipe if normalizer is None else replace(recipe, normalizer=normalizer)


def _score(recipe: BenchmarkConfig, subset: str, name: str, rows: Sequence[JsonDict]) -> Score:
    metric = find_metric(name, recipe.normalizer)
    answered = [row for row in rows if "error" not in row]
    problem = _problem(answered, name)
    title, value = f"{metric.title} ({problem})", UNKNOWN
    if problem is None:
        title, value = metric.title, scaled(metric, interval(metric, answered))
    is_first = name in metrics_of(recipe, subset)[:1]
    reported = recipe.reported.items() if is_first else ()
    return Score(
        subset,
        name,
        title,
        value,
        len(answered),
        len(rows) - len(answered),
        {who: found[subset] for who, found in reported if subset in found},
        metric.higher_is_better,
    )


def _problem(answered: Sequence[JsonDict], metric: str) -> str | None:
    """Why a metric of some rows is not known; None if it is."""
    if not answered:
        return "no answers"
    if metric.startswith("judge_"):
        return None if all("judgements" in row for row in answered) else "not judged yet"
    # An empty reference is one of silence, but not of a question.
    is_speech = metric in ERROR_RATES
    is_known = all("reference" in row if is_speech else row.get("reference") for row in answered)
    return None if is_known else "references unknown"


def scaled(metric: Metric, value: Interval) -> Interval:
    """As it is printed: percentages where the metric is one."""
    factor = 100 if metric.is_percent else 1
    return Interval(*(factor * number for number in value))


def _averages(recipe: BenchmarkConfig, scores: Sequence[Score]) -> list[Score]:
    """Means of subsets' first metrics, without intervals."""
    known = {
        own.subset: own
        for own in scores
        if own.metric in metrics_of(recipe, own.subset)[:1] and own.is_known
    }
    found = []
    for name, parts in recipe.averages.items():
        if not all(part in known for part in parts):
            continue
        own = [known[part] for part in parts]
        value = float(np.mean([score.value.value for score in own]))
        average = own[0]._replace(
            subset=name,
            value=Interval(value, float("nan"), float("nan")),
            num_rows=sum(score.num_rows for score in own),
            num_errors=sum(score.num_errors for score in own),
            reported={w: r[name] for w, r in recipe.reported.items() if name in r},
        )
        known[name] = average
        found.append(average)
    return found


class Difference(NamedTuple):
    """A metric of two models on the rows that both answered."""

    subset: str
    title: str
    comparison: Comparison


def compare_answers(
    first: Sequence[JsonDict],
    second: Sequence[JsonDict],
    *,
    benchmark: str | None = None,
    normalizer: str | None = None,
    language: str | None = None,
) -> list[Difference]:
    """The second model's metrics less the first's, by subset, on the rows that both answered.

    Args:
        first, second: of `read_answers`.
        benchmark, normalizer, language: as for `score`.
    """
    first, second = _in_language(first, language), _in_language(second, language)
    recipe = _recipe(first, benchmark, (), normalizer)
    theirs = {row_key(row): row for row in second if "error" not in row}
    pairs = [(r, theirs[row_key(r)]) for r in first if "error" not in r and row_key(r) in theirs]
    if not pairs:
        raise InputError("answers", "of no item that both have", "compare runs of the same data")
    for own, other in pairs:
        if own.get("reference") != other.get("reference"):
            raise InputError(" ".join(row_key(own)), "has two references", "compare the same data")
    by_subset: dict[str, list[tuple[JsonDict, JsonDict]]] = {}
    for pair in pairs:
        by_subset.setdefault(str(pair[0].get("subset", ALL)), []).append(pair)
    differences = []
    for subset, found in by_subset.items():
        for name in metrics_of(recipe, subset):
            ours, others = [a for a, _ in found], [b for _, b in found]
            if _problem(ours, name) or _problem(others, name):
                continue
            metric = find_metric(name, recipe.normalizer)
            result = compare(metric, ours, others)
            scaled_result = result._replace(difference=scaled(metric, result.difference))
            differences.append(Difference(subset, metric.title, scaled_result))
    return differences
