"""Manifests to an endless, resumable stream of device-ready batches.

Records are grouped by the length of their longest clip, so that a 3 s clip is never encoded as
30 s, and every bucket has one shape, so that every bucket compiles once. Several short records may
share a row. The order is a function of seed and epoch alone: an iterator's whole state is the
number of the next batch. Each process reads the sound of its own rows only.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
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
from qa_jax.data.manifest import Record, read_mixture
from qa_jax.data.packing import clips_per_row, first_fit
from qa_jax.data.processor import Processor
from qa_jax.errors import InputError

TOKEN_MULTIPLE = 16
"""Rows are padded to a multiple of this, so that near-equal data sets share compiled programs."""


class TrainBatch(NamedTuple):
    """One optimizer step's data: `accumulate` micro-batches of B rows and A clips.

    Arrays of numpy as they are read, of JAX once they are placed.

    Attributes:
        tokens: (accumulate, B, T) int32.
        segments: (accumulate, B, T) int32: 1, 2, ... for the records that share a row, 0 at
            padding (on the right).
        weights: (accumulate, B, T) float32, how much predicting this token counts; 0 for what
            the assistant did not write.
        signal: (accumulate, A, S) float32 waveforms, or None in the bucket without audio.
        frames: (accumulate, A) int32 valid log-mel frames, or None.
        reference: (accumulate, B) float32 log-probabilities of the answers, where they are known
            beforehand.

    Of pairs, B is twice the bucket's rows: of each group's, the first half hold the better answers
    and the second half the worse ones, to the same prompts and clips.
    """

    tokens: Any
    segments: Any
    weights: Any
    signal: Any
    frames: Any
    reference: Any = None


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
        pairs: whether the records are pairs of preferences; a bucket's rows are then pairs.

    Attributes:
        examples: usable records, as often as an epoch holds them.
        reference: (records, 2) log-probabilities of better and worse answers, for batches to hold;
            None where there are none.
        unusable: why others are left out, by "file:line"; at most `data.max_unusable`.

    Raises:
        InputError: naming the first record that cannot be used and may not be left out, before
            anything is computed.
    """

    def __init__(
        self,
        config: DataConfig,
        processor: Processor,
        *,
        accumulate: int = 1,
        length_exponent: float = 0.0,
        groups: int = 1,
        pairs: bool = False,
    ) -> None:
        self.config, self.processor, self.groups = config, processor, groups
        self.pairs = pairs
        self.reference: np.ndarray | None = None
        self.accumulate, self.length_exponent = accumulate, length_exponent
        for frames, rows in config.buckets.items():
            if rows % groups or rows < 1 or frames % 4 or not 0 <= frames <= MAX_FRAMES:
                raise InputError(
                    f"data.buckets {frames}: {rows}",
                    f"frames must be a multiple of 4 up to {MAX_FRAMES}, rows one of {groups}",
                    "change the bucket",
                )
        self.unusable: dict[str, str] = {}
        self._noting = threading.Lock()
        # Opening files is waiting: threads make it a third shorter, or much on a network's disk.
        with ThreadPoolExecutor(max(1, config.threads)) as pool:
            measured = pool.map(self._measure, read_mixture(config.train, self._tolerate))
            self.examples = [example for example in measured if example is not None]
        if not self.examples:
            raise InputError("data.train", "holds no usable record", "see the warnings above")
        self._planned: dict[int, list[tuple[int, np.ndarray]]] = {}
        self._rows: dict[int, list[tuple[int, ...]]] = {}
        self._width: dict[int, int] = {}
        self._clips: dict[int, int] = {}
        for bucket in sorted({e.bucket for e in self.examples}):
            self._plan_rows(bucket)

    def _plan_rows(self, bucket: int) -> None:
        """Which records share a row: the same in every epoch, whose order alone differs."""
        members = [i for i, e in enumerate(self.examples) if e.bucket == bucket]
        sizes = [(self.examples[i].tokens, len(self.examples[i].samples)) for i in members]
        longest = max(tokens for tokens, _ in sizes)
        width = max(longest, self.config.pack_tokens)
        self._width[bucket] = -(-width // TOKEN_MULTIPLE) * TOKEN_MULTIPLE
        self._clips[bucket] = 1
        if self.config.pack_tokens:
            order = np.random.default_rng([self.config.seed, bucket]).permutation(len(members))
            self._clips[bucket] = clips_per_row(sizes, self._width[bucket])
            capacity = self._width[bucket], self._clips[bucket]
            packed = first_fit([sizes[i] for i in order], capacity)
            self._rows[bucket] = [tuple(members[order[i]] for i in row) for row in packed]
        else:
            self._rows[bucket] = [(i,) for i in members]

    @property
    def steps_per_epoch(self) -> int:
        return sum(
            math.ceil(len(rows) / self._rows_per_step(bucket))
            for bucket, rows in self._rows.items()
        )

    @property
    def padding(self) -> float:
        """Share of an epoch's token slots that hold no token."""
        slots = sum(
            math.ceil(len(rows) / self._rows_per_step(b)) * self._rows_per_step(b) * self._width[b]
            for b, rows in self._rows.items()
        )
        return 1 - sum(example.tokens for example in self.examples) / slots

    def _rows_per_step(self, bucket: int) -> int:
        return self.config.buckets[bucket] * self.accumulate

    def _tolerate(self, error: InputError, source: str) -> None:
        """Counts and names an unusable record; raises once there are more than are allowed."""
        error = error.within(source)
        allowed = self.config.max_unusable
        with self._noting:
            if source in self.unusable:
                return
            self.unusable[source] = str(error)
            if len(self.unusable) > allowed:
                if not allowed:
                    raise error
                raise InputError(
                    str(source),
                    f"is the {len(self.unusable)}th unusable record, data.max_unusable is "
                    f"{allowed} ({error.cause})",
                    "run: qa-jax data check MANIFEST",
                )
        warnings.warn(f"left out: {error}", stacklevel=2)

    def _measure(self, record: Record) -> Example | None:
        try:
            return self._measured(record)
        except InputError as error:
            self._tolerate(error, record.source)
            return None

    def _measured(self, record: Record) -> Example:
        try:
            samples = tuple(
                clip_samples(clip, record.base, self.config.long_audio)
                for clip in record.prompt.audio
            )
            if self.pairs != (record.rejected is not None):
                raise InputError(
                    "record",
                    f"is {'no' if self.pairs else 'a'} pair of preferences",
                    f"set train.objective to {'answers' if self.pairs else 'preferences'}",
                )
            tokens = self.processor.count(record.versions(), samples, self.config.max_tokens)
        except InputError as error:
            raise error.within(record.source) from None
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
        return Example(record, samples, tokens, min(fits))

    def _epoch(self, epoch: int) -> list[tuple[int, np.ndarray]]:
        """All steps of an epoch in order: (bucket, rows). The last of a bucket may be short."""
        if epoch in self._planned:
            return self._planned[epoch]
        rng = np.random.default_rng([self.config.seed, epoch])
        steps = []
        for bucket, rows in self._rows.items():
            order, size = rng.permutation(len(rows)), self._rows_per_step(bucket)
            steps += [(bucket, order[i : i + size]) for i in range(0, len(order), size)]
        plan = [steps[i] for i in rng.permutation(len(steps))]
        # Two epochs are kept: threads that read ahead are still asked for the one before.
        self._planned = {e: p for e, p in self._planned.items() if e == epoch - 1} | {epoch: plan}
        return plan

    def batch(self, step: int, groups: Sequence[int] | None = None) -> TrainBatch:
        """The data of a step, counted from 0 through all epochs.

        `groups` names those groups of rows that this process needs (all by default): the batch then
        holds their rows and clips alone, one group after the other.
        """
        bucket, members = self._at(step)
        rows = self.config.buckets[bucket]
        some = range(self.groups) if groups is None else groups
        micro = [members[i * rows : (i + 1) * rows] for i in range(self.accumulate)]
        return _stack([self._micro_batch(bucket, m, some) for m in micro], len(some))

    def _at(self, step: int) -> tuple[int, np.ndarray]:
        epoch, index = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[index]

    def sources(self, step: int) -> list[str]:
        """Where the records of a step came from, "file:line" each."""
        return [self.examples[i].record.source for i in self.members(step)]

    def members(self, step: int) -> list[int]:
        """Which of `examples` a step holds, in the order of its rows."""
        bucket, rows = self._at(step)
        return [i for row in rows for i in self._rows[bucket][row]]

    def _micro_batch(self, bucket: int, members: np.ndarray, groups: Sequence[int]) -> TrainBatch:
        per_group, width = self.config.buckets[bucket] // self.groups, self._width[bucket]
        copies = 2 if self.pairs else 1
        shape = (copies * per_group * len(groups), width)
        tokens = np.full(shape, self.processor.pad_id, np.int32)
        segments = np.zeros(shape, np.int32)
        weights = np.zeros(shape, np.float32)
        reference = None if self.reference is None else np.zeros(shape[0], np.float32)
        clips: list[list[np.ndarray]] = [[] for _ in groups]
        shares = [members[i : i + per_group] for i in range(0, self.groups * per_group, per_group)]
        # The number of clips is decided by what all processes know, not by what this one reads.
        rows = self._rows[bucket]
        slots = max(
            sum(len(self.examples[i].samples) for m in share for i in rows[m]) for share in shares
        )
        for at, group in enumerate(groups):
            for row, member in enumerate(shares[group], start=at * copies * per_group):
                start = 0
                for index in rows[member]:
                    read = self._read(self.examples[index])
                    if read is None:
                        continue
                    versions, waves = read
                    for copy, (ids, answer) in enumerate(versions):
                        place = row + copy * per_group
                        here = slice(start, start + len(ids))
                        tokens[place, here] = ids
                        segments[place, here] = segments[place].max() + 1
                        weight = float(sum(answer)) ** self.length_exponent
                        weights[place, here] = np.array(answer) * weight
                        if reference is not None and self.reference is not None:
                            reference[place] = self.reference[index, copy]
                    start += len(versions[0][0])
                    clips[at] += waves
        if not bucket:
            return TrainBatch(tokens, segments, weights, None, None, reference)
        slots = -(-max(slots, self._clips[bucket] * per_group) // per_group) * per_group
        signal = np.zeros((len(groups), slots, bucket * HOP_LENGTH), np.float32)
        frames = np.zeros((len(groups), slots), np.int32)
        for at, waves in enumerate(clips):
            for i, wave in enumerate(waves):
                signal[at, i, : wave.size] = wave
                frames[at, i] = valid_frames(wave.size)
        sound = signal.reshape(-1, signal.shape[-1]), frames.reshape(-1)
        return TrainBatch(tokens, segments, weights, *sound, reference)

    def _read(
        self, example: Example
    ) -> tuple[list[tuple[list[int], list[bool]]], list[np.ndarray]] | None:
        """A record's ids and which of them are answers, of a pair for both answers, and its sound;
        None for an unusable one."""
        try:
            waves = self._load(example)
        except InputError as error:
            self._tolerate(error, example.record.source)
            return None
        sizes = [wave.size for wave in waves]
        versions = example.record.versions()
        return [self.processor.expand_answers(prompt, sizes) for prompt in versions], waves

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
        # A packed row has room for what was planned, another for all of its width.
        room = 0 if self.config.pack_tokens else self._width[example.bucket] - example.tokens
        if waves and (not fits or more > room):
            raise InputError(
                record.source,
                f"holds {longest} frames, more than its header says",
                "convert the file to wav or flac",
            )
        return waves

    def iterate(self, groups: Sequence[int] | None = None) -> Any:
        """A Grain iterator over all steps, decoding ahead in threads, with get_state/set_state."""
        import grain

        read = grain.ReadOptions(
            num_threads=self.config.threads, prefetch_buffer_size=2 * max(1, self.config.threads)
        )
        return iter(grain.MapDataset.source(_Steps(self, groups)).to_iter_dataset(read))


class _Steps:
    """What Grain sees: a sequence of batches with no end in sight."""

    def __init__(self, data: TrainData, groups: Sequence[int] | None) -> None:
        self.data, self.groups = data, groups

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, step: int) -> TrainBatch:
        return self.data.batch(int(step), self.groups)


def _stack(micro: list[TrainBatch], groups: int) -> TrainBatch:
    """Micro-batches as one; those whose groups have fewer clips are filled up."""
    clips = max(0 if m.frames is None else len(m.frames) // groups for m in micro)

    def fill(x: Any) -> np.ndarray:
        x = x.reshape(groups, -1, *x.shape[1:])
        x = np.pad(x, [(0, 0), (0, clips - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(groups * clips, *x.shape[2:])

    return TrainBatch(
        tokens=np.stack([m.tokens for m in micro]),
        segments=np.stack([m.segments for m in micro]),
        weights=np.stack([m.weights for m in micro]),
        signal=np.stack([fill(m.signal) for m in micro]) if clips else None,
        frames=np.stack([fill(m.frames) for m in micro]) if clips else None,
        reference=None if micro[0].reference is None else np.stack([m.reference for m in micro]),
    )
