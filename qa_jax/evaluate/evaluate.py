"""Generates an answer for every record of a manifest and scores it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from qa_jax.api import LoadedModel
from qa_jax.data.questions import read_questions
from qa_jax.errors import InputError
from qa_jax.evaluate.metrics import exact_match, word_error_rate
from qa_jax.generate import read_rows
from qa_jax.terminal import Progress


class Scores(NamedTuple):
    """Metrics of a manifest.

    Attributes:
        num_records: answered records.
        num_errors: records that could not be answered, and have no part in the metrics.
    """

    num_records: int
    word_error_rate: float
    exact_match: float
    num_errors: int = 0


def evaluate(
    model: LoadedModel,
    manifest: str | Path,
    *,
    output: str | Path | None = None,
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
        progress: called with (records done, records in all).
        settings: fields of `SamplingConfig`.

    Raises:
        InputError: a record has no answer to compare with, or none could be answered.
    """
    questions = read_questions(manifest)
    for question in questions:
        if "reference" not in question.row:
            raise InputError(
                question.row["source"], "has no answer to compare with", "add the assistant's turn"
            )
    settings = {"temperature": 0.0, "repetition_penalty": 1.0, **settings}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "predictions.jsonl") if output is None else Path(output)
        model.answer_questions(questions, path, field="prediction", progress=progress, **settings)
        rows = read_rows(path)
    answered = [row for row in rows if "error" not in row]
    if not answered:
        raise InputError(
            manifest, f"no record could be answered; the first: {rows[0]['error']}", "repair them"
        )
    references = [row["reference"] for row in answered]
    answers = [row["prediction"] for row in answered]
    return Scores(
        len(answered),
        word_error_rate(references, answers),
        exact_match(references, answers),
        len(rows) - len(answered),
    )
