"""Measured records of manifests as columns, and the examples of an epoch made from them.

Ten million records are a few arrays of 4 bytes a record; a record itself is parsed when it is used.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qa_jax.config import FRAME_MARGIN, MAX_FRAMES, DataConfig, num_audio_tokens, num_frames
from qa_jax.data.examples import Example, Measured, too_long
from qa_jax.data.manifest import OnError, Record
from qa_jax.errors import InputError
from qa_jax.typing import Int

PlannedSamples = Callable[[Int[np.ndarray, " clips"]], Int[np.ndarray, " clips"]]
"""Samples of clips of such lengths in a batch, at most."""


class Table(ABC):
    """The usable records of a manifest.

    Args:
        num_clips: of each record.
        num_samples: of each clip, record by record.
        text_tokens: see `Measured`.
    """

    def __init__(
        self,
        num_clips: Int[np.ndarray, " records"],
        num_samples: Int[np.ndarray, " clips"],
        text_tokens: Int[np.ndarray, " records"],
    ) -> None:
        self.num_clips, self.num_samples, self.text_tokens = num_clips, num_samples, text_tokens
        self.first_clip = np.concatenate([[0], np.cumsum(num_clips, dtype=np.int64)])

    def __len__(self) -> int:
        return len(self.num_clips)

    @abstractmethod
    def record(self, row: int) -> Record:
        """A record; raises InputError if it is no longer what was measured."""

    @property
    def digest(self) -> str | None:
        """Of all records, if it is known without reading them."""
        return None

    def samples_of(self, row: int) -> Int[np.ndarray, " clips"]:
        """Samples of a record's clips."""
        return self.num_samples[self.first_clip[row] : self.first_clip[row + 1]]


class MemoryTable(Table):
    """A manifest that was read and measured as a whole."""

    def __init__(self, records: Sequence[Record], measured: Sequence[Measured]) -> None:
        self._records = records
        super().__init__(
            np.array([len(m.num_samples) for m in measured], np.int32),
            np.array([n for m in measured for n in m.num_samples], np.int32),
            np.array([m.text_tokens for m in measured], np.int32),
        )

    def record(self, row: int) -> Record:
        return self._records[row]


class Examples(Sequence[Example]):
    """Usable records in their order, repeated as an epoch repeats them.

    Args:
        tables: the manifests', each with the number of times that an epoch holds its records.
        config: buckets and the longest record.
        planned_samples: see `PlannedSamples`.
        on_error: gets each record that cannot be used.

    Attributes:
        num_tokens: tokens of each example in a batch, at most.
        num_clips: clips of each.
        buckets: bucket of each.
    """

    def __init__(
        self,
        tables: Sequence[tuple[Table, float]],
        config: DataConfig,
        planned_samples: PlannedSamples,
        on_error: OnError,
    ) -> None:
        self.tables = [table for table, _ in tables]
        self._planned_samples = planned_samples
        num_tokens, num_clips, buckets, rows = [], [], [], []
        for table, repeats in tables:
            tokens, bucket = _plan(table, config, planned_samples, on_error)
            chosen = _repeated(np.flatnonzero(bucket >= 0).astype(np.int32), repeats)
            rows.append(chosen)
            num_tokens.append(tokens[chosen])
            num_clips.append(table.num_clips[chosen])
            buckets.append(bucket[chosen])
        self._ends = np.cumsum([len(chosen) for chosen in rows])
        self._rows = np.concatenate(rows)
        self.num_tokens, self.num_clips = np.concatenate(num_tokens), np.concatenate(num_clips)
        self.buckets = np.concatenate(buckets)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        table = self.tables[self.source_of(index)]
        row = int(self._rows[index])
        samples = self._planned_samples(table.samples_of(row))
        return Example(
            table.record(row),
            tuple(samples.tolist()),
            int(self.num_tokens[index]),
            int(self.buckets[index]),
        )

    def source_of(self, index: int) -> int:
        """The table that an example is from."""
        return int(self.sources_of(np.array([index]))[0])

    def sources_of(self, indices: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """The tables that examples are from."""
        return np.searchsorted(self._ends, indices, side="right")

    @functools.cached_property
    def digest(self) -> str:
        """Of all records, wherever their manifest is."""
        known = [table.digest for table in self.tables]
        if None not in known:
            return digest_of([known, hashlib.sha256(self._rows.tobytes()).hexdigest()])
        return digest_of(
            [
                (e.record.source.rpartition("/")[2], e.record.raw, e.num_samples, e.num_tokens)
                for e in self
            ]
        )


def digest_of(value: object) -> str:
    """A short digest of a JSON value; of a clip in it, its name."""
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


def all_repeats(
    manifests: Mapping[str, float], tables: Sequence[Table], temperature: float
) -> list[float]:
    """How often an epoch holds the records of each manifest, with `data.temperature`.

    Raises InputError for a number of repeats, or a temperature, that means nothing.
    """
    if not temperature >= 1:
        raise InputError("data.temperature", f"is {temperature}", "give 1 for none, or more")
    for path, repeats in manifests.items():
        if not 0 < repeats < np.inf:
            raise InputError(f"data.train {path}", f"{repeats} repeats", "give a number above 0")
    largest = max(map(len, tables))
    return [
        repeats * (largest / max(len(table), 1)) ** (1 - 1 / temperature)
        for repeats, table in zip(manifests.values(), tables, strict=True)
    ]


def _repeated(rows: Int[np.ndarray, " rows"], repeats: float) -> Int[np.ndarray, " examples"]:
    """Rows so many times; of the last fraction, evenly spaced ones, since neighbouring records are
    often similar."""
    whole = int(repeats)
    num_extra = round((repeats - whole) * len(rows))
    extra = rows[np.arange(num_extra) * len(rows) // max(num_extra, 1)]
    return np.concatenate([*[rows] * whole, extra])


def _plan(
    table: Table, config: DataConfig, planned_samples: PlannedSamples, on_error: OnError
) -> tuple[Int[np.ndarray, " records"], Int[np.ndarray, " records"]]:
    """Tokens and bucket of each record; -1 for one that cannot be used."""
    frames = num_frames(planned_samples(table.num_samples))
    ends = np.concatenate([[0], np.cumsum(num_audio_tokens(frames), dtype=np.int64)])
    audio_tokens = np.diff(ends[table.first_clip])
    num_tokens = (table.text_tokens + audio_tokens).astype(np.int32)
    has_clips = np.asarray(table.num_clips) > 0
    required = np.zeros(len(table), np.int32)
    if has_clips.any():
        longest = np.maximum.reduceat(frames, table.first_clip[:-1][has_clips])
        required[has_clips] = np.minimum(longest + FRAME_MARGIN, MAX_FRAMES)
    buckets = np.array(sorted(config.buckets), np.int32)
    bucket = np.append(buckets, np.int32(-1))[np.searchsorted(buckets, required)]
    is_long = num_tokens > config.max_tokens
    for row in np.flatnonzero(is_long | (bucket < 0)).tolist():
        record = table.record(row)
        error = InputError(
            record.source,
            f"needs a bucket of {required[row]} frames, the largest is {buckets[-1]}",
            "add one to data.buckets",
        )
        if is_long[row]:
            error = InputError("record", *too_long(int(num_tokens[row]), config.max_tokens))
        on_error(error, record.source)
    bucket[is_long] = -1
    return num_tokens, bucket
