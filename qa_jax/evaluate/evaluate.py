"""Answers every record of a manifest and scores what was generated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from qa_jax.data import Batch, Processor, Prompt, Record, clip_samples, read_manifest
from qa_jax.data.manifest import split_last_answer
from qa_jax.errors import InputError
from qa_jax.evaluate.metrics import exact_match, word_error_rate

if TYPE_CHECKING:
    from qa_jax.api import LoadedModel


class Prediction(NamedTuple):
    """One answered record."""

    source: str
    prompt: str
    reference: str
    prediction: str


class Scores(NamedTuple):
    """Of a set of predictions."""

    records: int
    word_error_rate: float
    exact_match: float


class _Question(NamedTuple):
    """A record to be answered: its prompt, the answer it holds, samples of its clips."""

    prompt: Prompt
    reference: str
    samples: int


def evaluate(
    qa: LoadedModel,
    manifest: str | Path,
    *,
    batch_size: int = 8,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Scores:
    """Generates every record's last answer and scores it against the one that the record holds.

    Answers are greedy unless `settings` say otherwise, with a repetition penalty of 1, as the
    authors evaluate. Records are answered in order of length, so that batches hold little padding.

    Args:
        qa: the model, with its tokenizer.
        manifest: what to answer.
        batch_size: rows answered at a time; no answer depends on it.
        output: JSONL of predictions, one line a record in the manifest's order.
        progress: called with the answered and all records after each batch.
        settings: fields of `Sampling`.
    """
    if qa.processor is None:
        raise InputError("checkpoint", "has no tokenizer", "put its files beside the weights")
    records = read_manifest(manifest)
    questions = [_question(record, qa.processor.long_audio) for record in records]
    order = sorted(range(len(records)), key=lambda i: questions[i].samples)
    how = {"temperature": 0.0, "repetition_penalty": 1.0, **settings}
    answers: dict[int, Prediction] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        # The last batch is filled up, so that it needs no compiled program of its own.
        filled = chosen + [chosen[-1]] * (batch_size - len(chosen))
        batch = _collate(qa.processor, [(records[i], questions[i]) for i in filled])
        for i, ids in zip(chosen, qa.generate(batch, **how), strict=False):
            answers[i] = Prediction(
                source=records[i].source,
                prompt=questions[i].prompt.text,
                reference=questions[i].reference,
                prediction=qa.processor.tokenizer.decode(ids),
            )
        if progress is not None:
            progress(len(answers), len(records))
    predictions = [answers[i] for i in range(len(records))]
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(p._asdict(), ensure_ascii=False) + "\n" for p in predictions]
        Path(output).write_text("".join(lines), encoding="utf-8")
    return score(predictions)


def _question(record: Record, long_audio: str) -> _Question:
    prompt, reference = split_last_answer(record)
    try:
        samples = [clip_samples(c, record.base, long_audio) for c in prompt.audio]
    except InputError as error:
        raise error.within(record.source) from None
    return _Question(prompt, reference, sum(samples))


def _collate(processor: Processor, rows: list[tuple[Record, _Question]]) -> Batch:
    ids, waves = [], []
    for record, question in rows:
        try:
            here = processor.load(question.prompt.audio, base=record.base)
            ids.append(processor.expand(question.prompt.text, [w.size for w in here]))
        except InputError as error:
            raise error.within(record.source) from None
        waves += here
    return processor.collate(ids, waves, "left")


def score(predictions: list[Prediction]) -> Scores:
    """Both metrics over all predictions."""
    references = [p.reference for p in predictions]
    answers = [p.prediction for p in predictions]
    return Scores(
        len(predictions), word_error_rate(references, answers), exact_match(references, answers)
    )
