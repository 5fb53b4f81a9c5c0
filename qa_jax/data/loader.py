"""Manifests -> an endless, resumable stream of batches.

Records are grouped by the length of their longest clip, so that a 3 s clip is never encoded as
30 s, and every bucket has one shape and compiles once. Several short records may share a row. The
order is a function of seed and epoch alone: an iterator's whole state is the index of the next
batch. Each process reads the audio of its own rows only.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np

from qa_jax.config import MAX_FRAMES, AugmentConfig, DataConfig, JsonDict
from qa_jax.data.augment import Augmentation
from qa_jax.data.batch import TrainBatch, stack_micro_batches, with_audio
from qa_jax.data.epochs import Epochs
from qa_jax.data.examples import LoadedExample, Measured, load_example, measure
from qa_jax.data.index import has_index, open_index
from qa_jax.data.manifest import Record, read_manifest
from qa_jax.data.processor import Processor
from qa_jax.data.tables import Examples, MemoryTable, Table, all_repeats
from qa_jax.errors import InputError
from qa_jax.typing import Float

_NO_AUGMENTATION = AugmentConfig()


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
        augment: AugmentConfig = _NO_AUGMENTATION,
    ) -> None:
        self.config, self.processor = config, processor
        self.augmentation = Augmentation(augment, config.seed)
        self.num_batch_shards, self.num_completions = num_batch_shards, num_completions
        self.reference_log_probs: Float[np.ndarray, "examples completions"] | None = None
        self.grad_accum_steps, self.length_exponent = grad_accum_steps, length_exponent
        self._check_buckets()
        self.bad_records: dict[str, str] = {}
        self._lock = threading.Lock()
        self._num_sources = len(config.source_names())
        try:
            self.examples = Examples(
                self._read_tables(), config, self.augmentation.planned_samples, self._on_error
            )
        finally:  # the threads have ended: `warnings` is not safe in several
            for error in list(self.bad_records.values())[: config.max_bad_records]:
                warnings.warn(f"skipped: {error}", stacklevel=2)
        if not len(self.examples):
            raise InputError("data.train", "contains no usable record", "see the warnings above")
        self.epochs = Epochs(self.examples, config, num_batch_shards, grad_accum_steps)

    def _read_tables(self) -> list[tuple[Table, float]]:
        train = self.config.train
        manifests = {train: 1.0} if isinstance(train, str) else train
        tables = [self._read_table(path) for path in manifests]
        repeats = all_repeats(manifests, tables, self.config.temperature)
        return list(zip(tables, repeats, strict=True))

    def _read_table(self, path: str) -> Table:
        """A manifest's index, or all of its records measured now."""
        config, processor = self.config, self.processor
        if has_index(path):
            return open_index(path, config, processor, self.num_completions, self._on_error)
        records = read_manifest(path, self._on_error, config.prompt)
        # Opening files is waiting: threads make it a third shorter, or more on network storage.
        with ThreadPoolExecutor(max(1, config.num_threads)) as pool:
            measured = list(pool.map(self._measure, records))
        usable = [i for i, found in enumerate(measured) if found is not None]
        return MemoryTable([records[i] for i in usable], [m for m in measured if m is not None])

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

    @property
    def steps_per_epoch(self) -> int:
        return self.epochs.steps_per_epoch

    @property
    def padding(self) -> float:
        """Padding fraction of an epoch's tokens."""
        return self.epochs.padding

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

    def _measure(self, record: Record) -> Measured | None:
        config = self.config
        try:
            return measure(record, self.processor, config.long_audio, self.num_completions)
        except InputError as error:
            self._on_error(error, record.source)
            return None

    def batch(self, step: int, shards: Sequence[int] | None = None) -> TrainBatch:
        """The data of a step, counted from 0 through all epochs.

        `shards` names the batch shards of this process (all by default): the batch then holds their
        rows and clips only, one shard after the other.
        """
        bucket, members = self.epochs.step(step)
        epoch, _ = self.epochs.locate(step)
        rows = self.config.buckets[bucket]
        local = range(self.num_batch_shards) if shards is None else shards
        micro = [members[i * rows : (i + 1) * rows] for i in range(self.grad_accum_steps)]
        return stack_micro_batches([self._micro_batch(bucket, m, local, epoch) for m in micro])

    def sources(self, step: int) -> list[str]:
        """Sources of a step's records, "file:line" each."""
        return [self.examples[i].record.source for i in self.example_indices(step)]

    def example_indices(self, step: int) -> list[int]:
        """Indices into `examples` of a step's records, in the order of its rows."""
        bucket, rows = self.epochs.step(step)
        return [i for row in rows for i in self.epochs.rows[bucket].row(row)]

    def _micro_batch(
        self, bucket: int, members: list[int], shards: Sequence[int], epoch: int = 0
    ) -> TrainBatch:
        per_shard, planned = (
            self.config.buckets[bucket] // self.num_batch_shards,
            self.epochs.rows[bucket],
        )
        shape = (self.num_completions * per_shard * len(shards), planned.width)
        has_reference = self.reference_log_probs is not None
        batch = TrainBatch(
            tokens=np.full(shape, self.processor.pad_id, np.int32),
            segment_ids=np.zeros(shape, np.int32),
            loss_weights=np.zeros(shape, np.float32),
            waveform=None,
            num_frames=None,
            reference_log_probs=np.zeros(shape[0], np.float32) if has_reference else None,
            source_ids=np.full(shape, -1, np.int8) if self._num_sources > 1 else None,
        )
        starts = range(0, self.num_batch_shards * per_shard, per_shard)
        shard_members = [members[i : i + per_shard] for i in starts]
        waveforms: list[list[np.ndarray]] = [[] for _ in shards]
        seeds: list[list[np.ndarray]] = [[] for _ in shards]
        for i, shard in enumerate(shards):
            first_row = i * self.num_completions * per_shard
            for row, member in enumerate(shard_members[shard], start=first_row):
                start = 0
                for index in planned.row(member):
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
        return with_audio(batch, waveforms, planned.num_clips, bucket, seeds if has_seeds else None)

    def poisoned_batch(self, step: int, shards: Sequence[int] | None = None) -> TrainBatch:
        """A batch of a step's shape without records, whose loss is NaN in every process.

        A process that cannot read its part of a step joins in with this, so that the others do not
        wait for it and all stop together.
        """
        bucket, _ = self.epochs.step(step)
        local = range(self.num_batch_shards) if shards is None else shards
        micro = [self._micro_batch(bucket, [], local)] * self.grad_accum_steps
        batch = stack_micro_batches(micro)
        return batch._replace(loss_weights=np.full_like(batch.loss_weights, np.nan))

    def shape_steps(self) -> dict[int, int]:
        """For each bucket, a step of the first epoch that is of that bucket: one for every shape
        that batches have."""
        buckets = self.epochs.epoch(0).buckets
        return {bucket: int(np.argmax(buckets == bucket)) for bucket in self.epochs.rows}

    def digests(self, epoch: int) -> dict[str, str]:
        """Digests of the records and of an epoch's plan: equal in processes that read the same."""
        return {
            "the number of usable records": str(len(self.examples)),
            "the digest of the records": self.examples.digest,
            f"the digest of epoch {epoch}'s batches": self.epochs.epoch(epoch).digest(),
        }

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
            if batch.source_ids is not None:
                batch.source_ids[r, columns] = self.examples.source_of(index)
            if batch.reference_log_probs is not None and self.reference_log_probs is not None:
                batch.reference_log_probs[r] = self.reference_log_probs[index, completion]

    def load(self, index: int, epoch: int = 0) -> LoadedExample | None:
        """Reads an example as an epoch hears it; None if it cannot be used and may be skipped."""
        example, augmentation = self.examples[index], self.augmentation
        seeds, change = [], None
        if augmentation.config.reads_differently or augmentation.config.changes_step:
            rng = augmentation.rng(epoch, index)
            seeds = [*augmentation.seeds(rng, len(example.num_samples))]
        if augmentation.config.reads_differently:
            change = functools.partial(augmentation, rng=rng, voice=self._voice)
        # A packed row has room for what was planned; another row for all of its width.
        packed = self.config.packed_length > 0
        room = 0 if packed else self.epochs.rows[example.bucket].width - example.num_tokens
        try:
            loaded = load_example(example, self.config, self.processor, room, change)
        except InputError as error:
            source = example.record.source
            is_new = source not in self.bad_records
            self._on_error(error, source)
            if is_new:
                warnings.warn(f"skipped: {self.bad_records[source]}", stacklevel=2)
            return None
        return loaded._replace(seeds=seeds)

    def _voice(self, rng: np.random.Generator) -> Float[np.ndarray, " _"]:
        """A clip of any record."""
        while True:
            record = self.examples[int(rng.integers(len(self.examples)))].record
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


class _Steps:
    """The batches as an endless sequence, for Grain."""

    def __init__(self, data: TrainDataset, shards: Sequence[int] | None) -> None:
        self.data, self.shards = data, shards

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, step: int) -> TrainBatch:
        return self.data.batch(int(step), self.shards)
