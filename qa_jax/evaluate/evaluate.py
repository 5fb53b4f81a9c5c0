"""Generates an answer for every record of a manifest and scores it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from qa_jax.api import LoadedModel
from qa_jax.data import Batch, Processor, Prompt, Record, clip_num_samples, read_manifest
from qa_jax.data.manifest import split_last_answer
from qa_jax.errors import InputError
from qa_jax.evaluate.metrics import exact_match, word_error_rate
from qa_jax.paths import as_path


class Prediction(NamedTuple):
    """A record's generated answer."""

    source: str
    prompt: str
    reference: str
    prediction: str


class Scores(NamedTuple):
    """Metrics of a set of predictions."""

    num_records: int
    word_error_rate: float
    exact_match: float


class _Question(NamedTuple):
    """A record's prompt, its reference answer, and the samples of its clips."""

    prompt: Prompt
    reference: str
    num_samples: int


def evaluate(
    model: LoadedModel,
    manifest: str | Path,
    *,
    batch_size: int = 8,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Scores:
    """Generates every record's last answer and scores it against the record's own.

    Decoding is greedy with a repetition penalty of 1 by default, as in the authors' evaluation.
    Records are answered in order of length, to reduce padding.

    Args:
        model: the model, with its tokenizer.
        manifest: the records.
        batch_size: rows per batch; answers do not depend on it.
        output: JSONL of predictions, one line per record in the manifest's order.
        progress: called with (records done, records in all) after each batch.
        settings: fields of `SamplingConfig`.
    """
    processor = model.require_processor()
    records = read_manifest(manifest)
    questions = [_question(record, processor.long_audio) for record in records]
    order = sorted(range(len(records)), key=lambda i: questions[i].num_samples)
    settings = {"temperature": 0.0, "repetition_penalty": 1.0, **settings}
    predictions: dict[int, Prediction] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        # The last batch is padded, so that it needs no compiled program of its own.
        padded = indices + [indices[-1]] * (batch_size - len(indices))
        batch = _collate(processor, [(records[i], questions[i]) for i in padded])
        for i, ids in zip(indices, model.generate(batch, **settings), strict=False):
            predictions[i] = Prediction(
                source=records[i].source,
                prompt=questions[i].prompt.text,
                reference=questions[i].reference,
                prediction=processor.tokenizer.decode(ids),
            )
        if progress is not None:
            progress(len(predictions), len(records))
    ordered = [predictions[i] for i in range(len(records))]
    if output is not None:
        path = as_path(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(p._asdict(), ensure_ascii=False) + "\n" for p in ordered]
        path.write_text("".join(lines), encoding="utf-8")
    return score(ordered)


def _question(record: Record, long_audio: str) -> _Question:
    prompt, reference = split_last_answer(record)
    try:
        num_samples = [clip_num_samples(c, record.base, long_audio) for c in prompt.audio]
    except InputError as error:
        raise error.within(record.source) from None
    return _Question(prompt, reference, sum(num_samples))


def _collate(processor: Processor, rows: list[tuple[Record, _Question]]) -> Batch:
    ids, waveforms = [], []
    for record, question in rows:
        try:
            loaded = processor.load(question.prompt.audio, base=record.base)
            ids.append(processor.tokenize(question.prompt.text, [w.size for w in loaded]))
        except InputError as error:
            raise error.within(record.source) from None
        waveforms += loaded
    return processor.collate(ids, waveforms, "left")


def score(predictions: list[Prediction]) -> Scores:
    """Both metrics over all predictions."""
    references = [p.reference for p in predictions]
    answers = [p.prediction for p in predictions]
    return Scores(
        len(predictions), word_error_rate(references, answers), exact_match(references, answers)
    )
