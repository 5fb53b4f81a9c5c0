"""Generates an answer for every record of a manifest and scores it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qa_jax.api import LoadedModel
from qa_jax.data.questions import Question, read_questions
from qa_jax.errors import InputError
from qa_jax.evaluate.answers import answer
from qa_jax.evaluate.metrics import find_metric
from qa_jax.evaluate.score import read_answers, score
from qa_jax.terminal import Progress


class Scores(NamedTuple):
    """Metrics of a manifest.

    Attributes:
        num_records: answered records.
        num_errors: records that could not be answered, and have no part in the metrics.
        values: metrics by name, as fractions.
    """

    num_records: int
    num_errors: int
    values: dict[str, float]


def read_labelled(manifest: str | Path) -> list[Question]:
    """The questions of a manifest; raises InputError for a record without an answer."""
    questions = read_questions(manifest)
    for question in questions:
        if "reference" not in question.row:
            raise InputError(
                question.row["source"], "has no answer to compare with", "add the assistant's turn"
            )
    return questions


def evaluate(
    model: LoadedModel,
    manifest: str | Path,
    *,
    output: str | Path | None = None,
    metrics: Sequence[str] = ("wer", "exact_match"),
    normalizer: str = "simple",
    language: str = "",
    progress: Progress | None = None,
    **settings: Any,
) -> Scores:
    """Generates every record's last answer and scores it against the record's own.

    Decoding is greedy with a repetition penalty of 1 by default, as in the authors' evaluation.

    Args:
        model: the model, with its tokenizer.
        manifest: the records.
        output: JSONL of predictions, one line per record in the manifest's order; what is there
            already from the same model and settings is not generated again.
        metrics: names of `METRICS`.
        normalizer: a name of `NORMALIZERS`.
        language: ISO code of the answers' language, for normalizers that depend on it.
        progress: called with (records done, records in all).
        settings: fields of `SamplingConfig`.

    Raises:
        InputError: a record has no answer to compare with, or none could be answered.
    """
    found = [find_metric(name, normalizer) for name in metrics]
    questions = read_labelled(manifest)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "predictions.jsonl") if output is None else Path(output)
        answer(model, questions, path, progress=progress, **settings)
        rows = read_answers([path])
    scored = score(rows, metrics=metrics, normalizer=normalizer, language=language or None)
    values = {
        name: own.value.value / (100 if metric.is_percent else 1)
        for name, metric, own in zip(metrics, found, scored.scores, strict=True)
    }
    return Scores(scored.scores[0].num_rows, scored.scores[0].num_errors, values)
