"""The plan of epochs: which examples share a row, and which rows a step, as arrays."""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import threading
from typing import NamedTuple

import numpy as np

from qa_jax.config import DataConfig
from qa_jax.data.packing import clips_per_row, pack
from qa_jax.data.tables import Examples
from qa_jax.errors import InputError
from qa_jax.typing import Int

TOKEN_MULTIPLE = 8
"""Rows are padded to a multiple of this, so that similar datasets share compiled programs."""
_NEVER = np.iinfo(np.int32).max


class BucketRows(NamedTuple):
    """The rows of a bucket: the same in every epoch; only their order differs.

    Attributes:
        members: examples, row by row.
        starts: where each row's begin, and the end of the last.
        ends: the first epoch without each row; None if all have all.
        width: tokens of a row.
        num_clips: clips of each shard of a step.
    """

    members: Int[np.ndarray, " members"]
    starts: Int[np.ndarray, " starts"]
    ends: Int[np.ndarray, " rows"] | None
    width: int
    num_clips: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def rows_of(self, epoch: int) -> Int[np.ndarray, " present"]:
        """Those that an epoch has."""
        if self.ends is None:
            return np.arange(len(self), dtype=np.int32)
        return np.flatnonzero(self.ends > epoch).astype(np.int32)

    def row(self, row: int) -> list[int]:
        """The examples of a row."""
        return self.members[self.starts[row] : self.starts[row + 1]].tolist()


class Epoch(NamedTuple):
    """The steps of an epoch in order.

    Attributes:
        orders: each bucket's rows in the epoch's order; a step takes the next of them.
        buckets: of each step.
        starts: of each step, its first row in its bucket's order.
    """

    orders: dict[int, Int[np.ndarray, " rows"]]
    buckets: Int[np.ndarray, " steps"]
    starts: Int[np.ndarray, " steps"]

    def digest(self) -> str:
        """Equal in processes with the same plan."""
        total = hashlib.sha256()
        for array in (*self.orders.values(), self.buckets, self.starts):
            total.update(array.tobytes())
        return total.hexdigest()[:16]


class Epochs:
    """The plan, a function of the examples, `data.seed` and the epoch.

    Args:
        examples: to plan.
        config: rows per step, packing and the seed.
        num_batch_shards: shards of the batch.
        grad_accum_steps: micro-batches per step.

    Attributes:
        rows: of each bucket that has any.
    """

    def __init__(
        self, examples: Examples, config: DataConfig, num_batch_shards: int, grad_accum_steps: int
    ) -> None:
        self._config, self._num_batch_shards = config, num_batch_shards
        self._rows_per_step = {b: n * grad_accum_steps for b, n in config.buckets.items()}
        self._ends = _source_ends(config, len(examples.tables))
        self.num_tokens = int(examples.num_tokens.sum(dtype=np.int64))
        self.rows = {
            bucket: self._plan_rows(examples, bucket)
            for bucket in np.unique(examples.buckets).tolist()
        }
        self._epochs: dict[int, Epoch] = {}
        self._lock = threading.Lock()

    def _plan_rows(self, examples: Examples, bucket: int) -> BucketRows:
        members = np.flatnonzero(examples.buckets == bucket).astype(np.int32)
        sizes = np.stack([examples.num_tokens[members], examples.num_clips[members]], axis=1)
        width = max(int(sizes[:, 0].max()), self._config.packed_length)
        width = -(-width // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
        rows_per_shard = self._config.buckets[bucket] // self._num_batch_shards
        ends = None if self._ends is None else self._ends[examples.sources_of(members)]
        if self._config.packed_length:
            rng = np.random.default_rng([self._config.seed, bucket])
            order = rng.permutation(len(members)).astype(np.int32)
            clips = clips_per_row(sizes, width)
            # A row ends as a whole, so it holds records that end together.
            groups = [order] if ends is None else [order[ends[order] == e] for e in np.unique(ends)]
            packed, lengths = [], []
            for group in groups:
                indices, starts = pack(sizes[group], (width, clips))
                packed.append(group[indices])
                lengths.append(np.diff(starts))
            starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int32)
            chosen = np.concatenate(packed)
            ends = None if ends is None else ends[chosen[starts[:-1]]]
            return BucketRows(members[chosen], starts, ends, width, clips * rows_per_shard)
        # Room for the records with the most clips, whichever order brings them together.
        most = np.sort(sizes[:, 1])[::-1][:rows_per_shard]
        starts = np.arange(len(members) + 1, dtype=np.int32)
        return BucketRows(members, starts, ends, width, max(rows_per_shard, int(most.sum())))

    def _num_steps(self, bucket: int, epoch: int = 0) -> int:
        return math.ceil(len(self.rows[bucket].rows_of(epoch)) / self._rows_per_step[bucket])

    @functools.cached_property
    def _phases(self) -> list[tuple[int, int]]:
        """From which epoch on epochs have how many steps."""
        firsts = [0]
        if self._ends is not None:
            firsts += sorted({end for end in self._ends.tolist() if end < _NEVER})
        return [(first, sum(self._num_steps(b, first) for b in self.rows)) for first in firsts]

    @property
    def steps_per_epoch(self) -> int:
        """Of the first epoch, which has all sources."""
        return self._phases[0][1]

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch of a step, counted from 0 through all epochs, and its number in the epoch."""
        for (first, size), (end, _) in itertools.pairwise([*self._phases, (_NEVER, 0)]):
            if step < (end - first) * size:
                return first + step // size, step % size
            step -= (end - first) * size
        raise AssertionError(step)

    @property
    def padding(self) -> float:
        """Padding fraction of an epoch's tokens."""
        size = sum(
            self._num_steps(bucket) * self._rows_per_step[bucket] * rows.width
            for bucket, rows in self.rows.items()
        )
        return 1 - self.num_tokens / size

    def epoch(self, epoch: int) -> Epoch:
        """All steps of an epoch. The last of a bucket may be short."""
        with self._lock:
            if epoch not in self._epochs:
                # Two epochs are kept: prefetching threads may still need the one before.
                self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
                self._epochs[epoch] = self._plan_epoch(epoch)
            return self._epochs[epoch]

    def _plan_epoch(self, epoch: int) -> Epoch:
        rng = np.random.default_rng([self._config.seed, epoch])
        orders, buckets, starts = {}, [], []
        for bucket, rows in self.rows.items():
            orders[bucket] = rng.permutation(rows.rows_of(epoch))
            count = len(orders[bucket])
            first = np.arange(0, count, self._rows_per_step[bucket], dtype=np.int32)
            starts.append(first)
            buckets.append(np.full(len(first), bucket, np.int32))
        order = rng.permutation(sum(map(len, starts)))
        return Epoch(orders, np.concatenate(buckets)[order], np.concatenate(starts)[order])

    def step(self, step: int) -> tuple[int, list[int]]:
        """The bucket and the rows of a step, counted from 0 through all epochs."""
        number, index = self.locate(step)
        epoch = self.epoch(number)
        bucket, start = int(epoch.buckets[index]), int(epoch.starts[index])
        rows = epoch.orders[bucket][start : start + self._rows_per_step[bucket]]
        return bucket, rows.tolist()


def _source_ends(config: DataConfig, num_sources: int) -> Int[np.ndarray, " sources"] | None:
    """The first epoch without each source; None if none ends.

    Raises InputError for a manifest that is not trained on, a number of epochs that means nothing,
    or if nothing would be left.
    """
    if not config.source_epochs:
        return None
    names = [config.train] if isinstance(config.train, str) else list(config.train)
    ends = np.full(num_sources, _NEVER, np.int32)
    for path, epochs in config.source_epochs.items():
        if path not in names or epochs < 1:
            raise InputError(
                f"data.source_epochs {path}",
                f"{epochs} epochs of a manifest of data.train ({', '.join(names)})",
                "name one of them, and give 1 or more",
            )
        ends[names.index(path)] = epochs
    if ends.max() < _NEVER:
        raise InputError(
            "data.source_epochs", "ends all manifests", "leave out the one that goes on"
        )
    return ends
