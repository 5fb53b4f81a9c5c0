"""Manifests to an endless, resumable stream of device-ready batches.

Records are grouped by the length of their longest clip, so that a 3 s clip is never encoded as
30 s, and every bucket has one shape, so that every bucket compiles once. The order is a function
of seed and epoch alone: an iterator's whole state is the number of the next batch.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from qa_jax.config import (
    FRAME_MARGIN,
    HOP_LENGTH,
    MAX_FRAMES,
    DataConfig,
    token_count,
    valid_frames,
)
from qa_jax.data.audio import clip_samples
from qa_jax.data.manifest import Record, read_manifest
from qa_jax.data.processor import Processor
from qa_jax.errors import InputError

TOKEN_MULTIPLE = 16
"""Rows are padded to a multiple of this, so that near-equal data sets share compiled programs."""


class TrainBatch(NamedTuple):
    """One optimizer step's data: `accumulate` micro-batches of B rows and A clips.

    Arrays of numpy as they are read, of JAX once they are placed.

    Attributes:
        tokens: (accumulate, B, T) int32.
        valid: (accumulate, B, T) bool, False at padding (on the right).
        weights: (accumulate, B, T) float32, how much predicting this token counts; 0 for what
            the assistant did not write.
        signal: (accumulate, A, S) float32 waveforms, or None in the bucket without audio.
        frames: (accumulate, A) int32 valid log-mel frames, or None.
    """

    tokens: Any
    valid: Any
    weights: Any
    signal: Any
    frames: Any


class Example(NamedTuple):
    """A record with its length known: what is needed to plan, but not the sound."""

    record: Record
    samples: tuple[int, ...]
    tokens: int
    bucket: int


class TrainData:
    """The training records and the plan of their batches.

    Args:
        config: what to read and how to group it.
        processor: of the model being trained.
        accumulate: micro-batches per step.
        length_exponent: see `TrainConfig.length_exponent`.
        groups: devices that rows are cut over; each gets its own rows' clips.

    Raises:
        InputError: naming the first record that cannot be used, before anything is computed.
    """

    def __init__(
        self,
        config: DataConfig,
        processor: Processor,
        *,
        accumulate: int = 1,
        length_exponent: float = 0.0,
        groups: int = 1,
    ) -> None:
        self.config, self.processor, self.groups = config, processor, groups
        self.accumulate, self.length_exponent = accumulate, length_exponent
        for frames, rows in config.buckets.items():
            if rows % groups or rows < 1 or frames % 4 or not 0 <= frames <= MAX_FRAMES:
                raise InputError(
                    f"data.buckets {frames}: {rows}",
                    f"frames must be a multiple of 4 up to {MAX_FRAMES}, rows one of {groups}",
                    "change the bucket",
                )
        # Opening files is waiting: threads make it a third shorter, or much on a network's disk.
        with ThreadPoolExecutor(max(1, config.threads)) as pool:
            self.examples = list(pool.map(self._measure, read_manifest(config.train)))
        self._planned: dict[int, list[tuple[int, np.ndarray]]] = {}
        self._members: dict[int, np.ndarray] = {}
        self._width: dict[int, int] = {}
        for bucket in sorted({e.bucket for e in self.examples}):
            members = [i for i, e in enumerate(self.examples) if e.bucket == bucket]
            longest = max(self.examples[i].tokens for i in members)
            self._members[bucket] = np.array(members)
            self._width[bucket] = -(-longest // TOKEN_MULTIPLE) * TOKEN_MULTIPLE

    @property
    def steps_per_epoch(self) -> int:
        return sum(
            math.ceil(len(members) / self._records_per_step(bucket))
            for bucket, members in self._members.items()
        )

    def _records_per_step(self, bucket: int) -> int:
        return self.config.buckets[bucket] * self.accumulate

    def _measure(self, record: Record) -> Example:
        try:
            samples = tuple(
                clip_samples(clip, record.base, self.config.long_audio)
                for clip in record.prompt.audio
            )
            ids, _ = self.processor.expand_answers(record.prompt, samples)
        except InputError as error:
            raise error.within(record.source) from None
        if len(ids) > self.config.max_tokens:
            raise InputError(
                record.source,
                f"{len(ids)} tokens are over data.max_tokens = {self.config.max_tokens}",
                "raise it, or split the record",
            )
        frames = max((valid_frames(s) for s in samples), default=0)
        need = min(frames + FRAME_MARGIN, MAX_FRAMES) if samples else 0
        # A record without audio rides along in the shortest bucket where there is none for it.
        fits = [b for b in self.config.buckets if b >= need]
        if not fits:
            raise InputError(
                record.source,
                f"needs a bucket of {need} frames, the largest is {max(self.config.buckets)}",
                "add one to data.buckets",
            )
        return Example(record, samples, len(ids), min(fits))

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """All steps of an epoch in order: (bucket, records). The last of a bucket may be short."""
        if epoch in self._planned:
            return self._planned[epoch]
        rng = np.random.default_rng([self.config.seed, epoch])
        steps = []
        for bucket, members in self._members.items():
            order, size = rng.permutation(members), self._records_per_step(bucket)
            steps += [(bucket, order[i : i + size]) for i in range(0, len(order), size)]
        plan = [steps[i] for i in rng.permutation(len(steps))]
        # Two epochs are kept: threads that read ahead are still asked for the one before.
        self._planned = {e: p for e, p in self._planned.items() if e == epoch - 1} | {epoch: plan}
        return plan

    def batch(self, step: int) -> TrainBatch:
        """The data of a step, counted from 0 through all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        bucket, members = self._epoch(epoch)[index]
        rows = self.config.buckets[bucket]
        micro = [members[i * rows : (i + 1) * rows] for i in range(self.accumulate)]
        return _stack([self._micro_batch(bucket, m) for m in micro])

    def _micro_batch(self, bucket: int, members: np.ndarray) -> TrainBatch:
        rows, width = self.config.buckets[bucket], self._width[bucket]
        tokens = np.full((rows, width), self.processor.pad_id, np.int32)
        valid = np.zeros((rows, width), bool)
        weights = np.zeros((rows, width), np.float32)
        clips: list[list[np.ndarray]] = [[] for _ in range(self.groups)]
        for row, member in enumerate(members):
            example = self.examples[member]
            waves = self._load(example)
            sizes = [wave.size for wave in waves]
            ids, answer = self.processor.expand_answers(example.record.prompt, sizes)
            tokens[row, : len(ids)], valid[row, : len(ids)] = ids, True
            weights[row, : len(ids)] = np.array(answer) * float(sum(answer)) ** self.length_exponent
            clips[row * self.groups // rows] += waves
        if not bucket:
            return TrainBatch(tokens, valid, weights, None, None)
        per_row = -(-max(map(len, clips)) * self.groups // rows)
        per_group = max(per_row, 1) * rows // self.groups
        signal = np.zeros((self.groups, per_group, bucket * HOP_LENGTH), np.float32)
        frames = np.zeros((self.groups, per_group), np.int32)
        for group, waves in enumerate(clips):
            for i, wave in enumerate(waves):
                signal[group, i, : wave.size] = wave
                frames[group, i] = valid_frames(wave.size)
        return TrainBatch(
            tokens, valid, weights, signal.reshape(-1, signal.shape[-1]), frames.reshape(-1)
        )

    def _load(self, example: Example) -> list[np.ndarray]:
        record = example.record
        try:
            waves = self.processor.load(
                record.prompt.audio, base=record.base, long_audio=self.config.long_audio
            )
        except InputError as error:
            raise error.within(record.source) from None
        # An MP3's header may be a few frames off its sound; what matters is that the sound fits.
        longest = max((valid_frames(wave.size) for wave in waves), default=0)
        tokens = sum(token_count(valid_frames(wave.size)) for wave in waves)
        more = tokens - sum(token_count(valid_frames(n)) for n in example.samples)
        fits = longest + FRAME_MARGIN <= example.bucket or longest <= MAX_FRAMES == example.bucket
        if waves and (not fits or example.tokens + more > self._width[example.bucket]):
            raise InputError(
                record.source,
                f"holds {longest} frames, more than its header says",
                "convert the file to wav or flac",
            )
        return waves

    def iterate(self) -> Any:
        """A Grain iterator over all steps, decoding ahead in threads, with get_state/set_state."""
        import grain

        read = grain.ReadOptions(
            num_threads=self.config.threads, prefetch_buffer_size=2 * max(1, self.config.threads)
        )
        return iter(grain.MapDataset.source(_Steps(self)).to_iter_dataset(read))


class _Steps:
    """What Grain sees: a sequence of batches with no end in sight."""

    def __init__(self, data: TrainData) -> None:
        self.data = data

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, step: int) -> TrainBatch:
        return self.data.batch(int(step))


def _stack(micro: list[TrainBatch]) -> TrainBatch:
    """Micro-batches as one; those with fewer clips are filled up."""
    clips = max(0 if m.frames is None else len(m.frames) for m in micro)
    return TrainBatch(
        tokens=np.stack([m.tokens for m in micro]),
        valid=np.stack([m.valid for m in micro]),
        weights=np.stack([m.weights for m in micro]),
        signal=np.stack([_fill(m.signal, clips) for m in micro]) if clips else None,
        frames=np.stack([_fill(m.frames, clips) for m in micro]) if clips else None,
    )


def _fill(x: Any, length: int) -> np.ndarray:
    return np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1))
