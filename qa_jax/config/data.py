"""Training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Manifests and batches.

    Attributes:
        train: manifest of training records (JSONL), or another dataset that `qa_jax.data.readers`
            reads; or several as {manifest: repeats}: how often an epoch holds the records of each,
            at least once.
        eval: manifest of held-out records; empty for none.
        prompt: raw prompt of records in the short form that have none.
        tokenizer: directory of the tokenizer's files; empty if `train.init_from` brings its own.
        buckets: rows per step by clip length, {log-mel frames: rows}; a clip goes to the shortest
            bucket that holds it and 4 frames more. 0 is a bucket for records without audio.
        packed_length: tokens of a packed row, which holds several records that do not attend to
            one another; 0 for one record a row.
        max_tokens: length of the longest record, audio tokens included; a longer one is an error.
        max_bad_records: records that may be skipped, each with a warning, before the run stops.
        long_audio: clips over 30 s: `error`, or `truncate` with a warning.
        seed: seed of the order of records.
        num_threads: threads that read and decode audio ahead of the step.
    """

    train: str | dict[str, float] = ""
    eval: str = ""
    prompt: str = ""
    tokenizer: str = ""
    buckets: dict[int, int] = field(default_factory=lambda: {0: 8, 504: 8, 1004: 8, 3000: 8})
    packed_length: int = 0
    max_tokens: int = 2048
    max_bad_records: int = 0
    long_audio: Literal["error", "truncate"] = "error"
    seed: int = 0
    num_threads: int = 2
