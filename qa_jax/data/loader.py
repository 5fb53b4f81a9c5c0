"""Manifests -> an endless, resumable stream of batches.

Records are grouped by the length of their longest clip, so that a 3 s clip is never encoded as
30 s, and every bucket has one shape and compiles once. Several short records may share a row. The
order is a function of seed and epoch alone: an iterator's whole state is the index of the next
batch. Each process reads the audio of its own rows only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np

from qa_jax.config import MAX_FRAMES, AugmentConfig, DataConfig, JsonDict
from qa_jax.data.augment import Augmentation
from qa_jax.data.batch import TrainBatch, stack_micro_batches, with_audio
from qa_jax.data.examples import Example, LoadedExample, load_example, measure
from qa_jax.data.manifest import Record, read_mixture
from qa_jax.data.packing import clips_per_row, first_fit
from qa_jax.data.processor import Processor
from qa_jax.errors import InputError
from qa_jax.typing import Float

TOKEN_MULTIPLE = 16
"""Rows are padded to a multiple of this, so that similar datasets share compiled programs."""


@runtime_checkable
class BatchIterator(Protocol):
    """Batches, with a state to resume from: a `grain.DatasetIterator`."""

    def __next__(self) -> TrainBatch: ...

    def get_state(self) -> JsonDict: ...

    def set_state(self, state: JsonDict) -> None: ...


class TrainDataset:
    """The training records and the plan of their batches.

    Args:
        config: what to read and how to group it.
        processor: of the model being trained.
        grad_accum_steps: micro-batches per step.
        length_exponent: see `TrainConfig.length_exponent`.
        num_batch_shards: shards of the batch; each holds its own rows' clips.
        num_completions: completions of every record, which become rows: 2 for preference pairs.
        augment: changes of clips.

    Attributes:
        examples: usable records, repeated as an epoch repeats them.
        reference_log_probs: of every example's completions, for batches to hold; or None.
        bad_records: errors of skipped records by "file:line"; at most `data.max_bad_records`.

    Raises:
        InputError: naming the first record that cannot be used and may not be skipped, before
            anything is computed.
    """

    def __init__(
        self,
        config: DataConfig,
        processor: Processor,
        *,
        grad_accum_steps: int = 1,
        length_exponent: float = 0.0,
        num_batch_shards: int = 1,
        num_completions: int = 1,
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008
    ) -> None:
        self.config, self.processor = config, processor
        self.augmentation = Augmentation(augment, config.seed)
        self.num_batch_shards, self.num_completions = num_batch_shards, num_completions
        self.reference_log_probs: Float[np.ndarray, "examples completions"] | None = None
        self.grad_accum_steps, self.length_exponent = grad_accum_steps, length_exponent
        self._check_buckets()
        self.bad_records: dict[str, str] = {}
        self._lock = threading.Lock()
        # Opening files is waiting: threads make it a third shorter, or more on network storage.
        try:
            with ThreadPoolExecutor(max(1, config.num_threads)) as pool:
                records = read_mixture(config.train, self._on_error, config.prompt)
                measured = pool.map(self._measure, records)
                self.examples = [example for example in measured if example is not None]
        finally:  # the threads have ended: `warnings` is not safe in several
            for error in list(self.bad_records.values())[: config.max_bad_records]:
                warnings.warn(f"skipped: {error}", stacklevel=2)
        if not self.examples:
            raise InputError("data.train", "contains no usable record", "see the warnings above")
        self._epoch_plans: dict[int, list[tuple[int, np.ndarray]]] = {}
        self._rows: dict[int, list[tuple[int, ...]]] = {}
        self._width: dict[int, int] = {}
        self._clips: dict[int, int] = {}
        for bucket in sorted({e.bucket for e in self.examples}):
            self._plan_rows(bucket)

    def _check_buckets(self) -> None:
        shards = self.num_batch_shards
        for frames, rows in self.config.buckets.items():
            if rows % shards or rows < 1 or frames % 4 or not 0 <= frames <= MAX_FRAMES:
                raise InputError(
                    f"data.buckets {frames}: {rows}",
                    f"frames must be a multiple of 4 up to {MAX_FRAMES}, rows a multiple of "
                    f"{shards}",
                    "change the bucket",
                )

    def _plan_rows(self, bucket: int) -> None:
        """Which records share a row: the same in every epoch; only the order of rows differs."""
        members = [i for i, e in enumerate(self.examples) if e.bucket == bucket]
        sizes = [(self.examples[i].num_tokens, len(self.examples[i].num_samples)) for i in members]
        longest = max(num_tokens for num_tokens, _ in sizes)
        width = max(longest, self.config.packed_length)
        self._width[bucket] = -(-width // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
        rows_per_shard = self.config.buckets[bucket] // self.num_batch_shards
        if self.config.packed_length:
            order = np.random.default_rng([self.config.seed, bucket]).permutation(len(members))
            clips = clips_per_row(sizes, self._width[bucket])
            packed = first_fit([sizes[i] for i in order], (self._width[bucket], clips))
            self._rows[bucket] = [tuple(members[order[i]] for i in row) for row in packed]
            self._clips[bucket] = clips * rows_per_shard
        else:
            self._rows[bucket] = [(i,) for i in members]
            # Room for the records with the most clips, whichever order brings them together.
            most = sorted((n for _, n in sizes), reverse=True)[:rows_per_shard]
            self._clips[bucket] = max(rows_per_shard, sum(most))

    @property
    def steps_per_epoch(self) -> int:
        return sum(
            math.ceil(len(rows) / self._rows_per_step(bucket))
            for bucket, rows in self._rows.items()
        )

    @property
    def padding(self) -> float:
        """Padding fraction of an epoch's tokens."""
        size = sum(
            math.ceil(len(rows) / self._rows_per_step(b)) * self._rows_per_step(b) * self._width[b]
            for b, rows in self._rows.items()
        )
        return 1 - sum(example.num_tokens for example in self.examples) / size

    def _rows_per_step(self, bucket: int) -> int:
        return self.config.buckets[bucket] * self.grad_accum_steps

    def _on_error(self, error: InputError, source: str) -> None:
        """Records an unusable record; raises once there are more than allowed."""
        error = error.within(source)
        allowed = self.config.max_bad_records
        with self._lock:
            if source in self.bad_records:
                return
            self.bad_records[source] = str(error)
            if len(self.bad_records) > allowed:
                if not allowed:
                    raise error
                raise InputError(
                    str(source),
                    f"is bad record {len(self.bad_records)}, data.max_bad_records is {allowed} "
                    f"({error.cause})",
                    "run: qa-jax data check MANIFEST",
                )

    def _measure(self, record: Record) -> Example | None:
        try:
            return measure(
                record, self.config, self.processor, self.num_completions, self.augmentation
            )
        except InputError as error:
            self._on_error(error, record.source)
            return None

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """All steps of an epoch in order: (bucket, rows). The last of a bucket may be short."""
        if epoch in self._epoch_plans:
            return self._epoch_plans[epoch]
        rng = np.random.default_rng([self.config.seed, epoch])
        steps = []
        for bucket, rows in self._rows.items():
            order, size = rng.permutation(len(rows)), self._rows_per_step(bucket)
            steps += [(bucket, order[i : i + size]) for i in range(0, len(order), size)]
        plan = [steps[i] for i in rng.permutation(len(steps))]
        # Two epochs are kept: prefetching threads may still need the one before.
        self._epoch_plans = {e: p for e, p in self._epoch_plans.items() if e == epoch - 1}
        self._epoch_plans[epoch] = plan
        return plan

    def batch(self, step: int, shards: Sequence[int] | None = None) -> TrainBatch:
        """The data of a step, counted from 0 through all epochs.

        `shards` names the batch shards of this process (all by default): the batch then holds their
        rows and clips only, one shard after the other.
        """
        bucket, members = self._step_plan(step)
        epoch = step // self.steps_per_epoch
        rows = self.config.buckets[bucket]
        local = range(self.num_batch_shards) if shards is None else shards
        micro = [members[i * rows : (i + 1) * rows] for i in range(self.grad_accum_steps)]
        return stack_micro_batches([self._micro_batch(bucket, m, local, epoch) for m in micro])

    def _step_plan(self, step: int) -> tuple[int, np.ndarray]:
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def sources(self, step: int) -> list[str]:
        """Sources of a step's records, "file:line" each."""
        return [self.examples[i].record.source for i in self.example_indices(step)]

    def example_indices(self, step: int) -> list[int]:
        """Indices into `examples` of a step's records, in the order of its rows."""
        bucket, rows = self._step_plan(step)
        return [i for row in rows for i in self._rows[bucket][row]]

    def _micro_batch(
        self, bucket: int, members: np.ndarray, shards: Sequence[int], epoch: int = 0
    ) -> TrainBatch:
        per_shard, width = self.config.buckets[bucket] // self.num_batch_shards, self._width[bucket]
        shape = (self.num_completions * per_shard * len(shards), width)
        has_reference = self.reference_log_probs is not None
        batch = TrainBatch(
            tokens=np.full(shape, self.processor.pad_id, np.int32),
            segment_ids=np.zeros(shape, np.int32),
            loss_weights=np.zeros(shape, np.float32),
            waveform=None,
            num_frames=None,
            reference_log_probs=np.zeros(shape[0], np.float32) if has_reference else None,
        )
        starts = range(0, self.num_batch_shards * per_shard, per_shard)
        shard_members = [members[i : i + per_shard] for i in starts]
        waveforms: list[list[np.ndarray]] = [[] for _ in shards]
        seeds: list[list[np.ndarray]] = [[] for _ in shards]
        for i, shard in enumerate(shards):
            first_row = i * self.num_completions * per_shard
            for row, member in enumerate(shard_members[shard], start=first_row):
                start = 0
                for index in self._rows[bucket][member]:
                    loaded = self.load(index, epoch)
                    if loaded is None:
                        continue
                    seeds[i] += loaded.seeds
                    self._fill(batch, row, start, per_shard, index, loaded)
                    start += len(loaded.completions[0][0])
                    waveforms[i] += loaded.waveforms
        if not bucket:
            return batch
        has_seeds = self.augmentation.config.changes_step
        return with_audio(
            batch, waveforms, self._clips[bucket], bucket, seeds if has_seeds else None
        )

    def poisoned_batch(self, step: int, shards: Sequence[int] | None = None) -> TrainBatch:
        """A batch of a step's shape without records, whose loss is NaN in every process.

        A process that cannot read its part of a step joins in with this, so that the others do not
        wait for it and all stop together.
        """
        bucket, _ = self._step_plan(step)
        local = range(self.num_batch_shards) if shards is None else shards
        micro = [self._micro_batch(bucket, np.zeros(0, int), local)] * self.grad_accum_steps
        batch = stack_micro_batches(micro)
        return batch._replace(loss_weights=np.full_like(batch.loss_weights, np.nan))

    def shape_steps(self) -> dict[int, int]:
        """For each bucket, a step of the first epoch that is of that bucket: one for every shape
        that batches have."""
        return {bucket: step for step, (bucket, _) in reversed([*enumerate(self._epoch(0))])}

    def digests(self, epoch: int) -> dict[str, str]:
        """Digests of the records and of an epoch's plan: equal in processes that read the same."""
        plan = [(bucket, members.tolist()) for bucket, members in self._epoch(epoch)]
        return {
            "the number of usable records": str(len(self.examples)),
            "the digest of the records": self.records_digest,
            f"the digest of epoch {epoch}'s batches": _digest(plan),
        }

    @functools.cached_property
    def records_digest(self) -> str:
        """A digest of all records, wherever their manifest is."""
        return _digest(
            [
                (e.record.source.rpartition("/")[2], e.record.raw, e.num_samples, e.num_tokens)
                for e in self.examples
            ]
        )

    def _fill(
        self,
        batch: TrainBatch,
        row: int,
        start: int,
        per_shard: int,
        index: int,
        loaded: LoadedExample,
    ) -> None:
        """Writes an example's completions into their rows, from token `start` on."""
        for completion, (ids, weights) in enumerate(loaded.completions):
            r, columns = row + completion * per_shard, slice(start, start + len(ids))
            batch.tokens[r, columns] = ids
            batch.segment_ids[r, columns] = batch.segment_ids[r].max() + 1
            num_targets = np.count_nonzero(weights)
            batch.loss_weights[r, columns] = weights
            batch.loss_weights[r, columns] *= float(num_targets) ** self.length_exponent
            if batch.reference_log_probs is not None and self.reference_log_probs is not None:
                batch.reference_log_probs[r] = self.reference_log_probs[index, completion]

    def load(self, index: int, epoch: int = 0) -> LoadedExample | None:
        """Reads an example as an epoch hears it; None if it cannot be used and may be skipped."""
        example, augmentation = self.examples[index], self.augmentation
        rng = augmentation.rng(epoch, index)
        seeds = augmentation.seeds(rng, len(example.num_samples))
        change = None
        if augmentation.config.reads_differently:
            change = functools.partial(augmentation, rng=rng, voice=self._voice)
        # A packed row has room for what was planned; another row for all of its width.
        packed = self.config.packed_length > 0
        room = 0 if packed else self._width[example.bucket] - example.num_tokens
        try:
            loaded = load_example(example, self.config, self.processor, room, change)
        except InputError as error:
            source = example.record.source
            is_new = source not in self.bad_records
            self._on_error(error, source)
            if is_new:
                warnings.warn(f"skipped: {self.bad_records[source]}", stacklevel=2)
            return None
        return loaded._replace(seeds=[*seeds])

    def _voice(self, rng: np.random.Generator) -> Float[np.ndarray, " _"]:
        """A clip of any record."""
        while True:
            record = self.examples[rng.integers(len(self.examples))].record
            if record.prompt.audio:
                return self.processor.load(
                    record.prompt.audio[:1], base=record.base, long_audio=self.config.long_audio
                )[0]

    def iterate(
        self, shards: Sequence[int] | None = None, state: JsonDict | None = None
    ) -> BatchIterator:
        """A Grain iterator over all steps, from a saved state on, that decodes ahead in threads."""
        import grain

        num_threads = self.config.num_threads
        read = grain.ReadOptions(
            num_threads=num_threads, prefetch_buffer_size=2 * max(1, num_threads)
        )
        batches = iter(grain.MapDataset.source(_Steps(self, shards)).to_iter_dataset(read))
        if state is not None:
            batches.set_state(state)
        return batches


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]


class _Steps:
    """The batches as an endless sequence, for Grain."""

    def __init__(self, data: TrainDataset, shards: Sequence[int] | None) -> None:
        self.data, self.shards = data, shards

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, step: int) -> TrainBatch:
        return self.data.batch(int(step), self.shards)
