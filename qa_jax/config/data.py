"""Training data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal


@dataclass(frozen=True)
class DataConfig:
    """Manifests and batches.

    Attributes:
        train: manifest of training records (JSONL), or another dataset that `qa_jax.data.readers`
            reads; or several as {manifest: repeats}: how often an epoch holds the records of each;
            below 1, evenly spaced records of it, the same in every epoch.
        source_epochs: {manifest: epochs}: manifests of `train` whose records are left out after so
            many epochs, while the others go on.
        temperature: above 1, an epoch holds the records of a smaller manifest more often: with T,
            one of n records (largest / n) ** (1 - 1 / T) times as often.
        eval: manifest of held-out records, whose loss is `eval_loss`; or several as {name:
            manifest}, whose losses are `eval_NAME_loss`; empty for none.
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
    source_epochs: dict[str, int] = field(default_factory=dict)
    temperature: float = 1.0
    eval: str | dict[str, str] = ""
    prompt: str = ""
    tokenizer: str = ""
    buckets: dict[int, int] = field(default_factory=lambda: {0: 8, 504: 8, 1004: 8, 3000: 8})
    packed_length: int = 0
    max_tokens: int = 2048
    max_bad_records: int = 0
    long_audio: Literal["error", "truncate"] = "error"
    seed: int = 0
    num_threads: int = 2

    def source_names(self) -> list[str]:
        """Short names of the manifests of a mixture, for metrics; none for a single manifest."""
        if isinstance(self.train, str) or len(self.train) < 2:
            return []
        paths = [PurePosixPath(path).with_suffix("") for path in self.train]
        for depth in range(1, max(len(path.parts) for path in paths) + 1):
            names = ["/".join(path.parts[-depth:]) for path in paths]
            if len(set(names)) == len(names):
                return names
        return [str(i) for i in range(len(paths))]

    def eval_sets(self) -> dict[str, str]:
        """Held-out manifests by the prefix of their metrics."""
        if isinstance(self.eval, str):
            return {"eval": self.eval} if self.eval else {}
        return {f"eval_{name}": path for name, path in self.eval.items()}
