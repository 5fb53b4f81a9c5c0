"""The engine: requests come and go, while all slots are decoded together.

A request waits for a slot, is prefilled in chunks, and is decoded until it is finished. The slot
then keeps its entries, and a later request with the same beginning (the next turn, the same clip
with another question) is prefilled from where they differ.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from qa_jax.config import ModelConfig, SamplingConfig
from qa_jax.errors import InputError
from qa_jax.generate.audio_cache import AudioCache
from qa_jax.generate.buckets import Buckets, group_rows
from qa_jax.generate.compilation import Program
from qa_jax.generate.inputs import UserBatch, prepare_inputs
from qa_jax.generate.memory import choose_slots
from qa_jax.generate.requests import Answer, Request, TokenInfo, requests_of_batch
from qa_jax.generate.sampling import RowSettings, Sampled
from qa_jax.generate.scheduler import Scheduler, Slot
from qa_jax.generate.slots import BURST, Programs, Prompts, Slots
from qa_jax.model import AudioInput
from qa_jax.parallel import current_platform, num_batch_shards
from qa_jax.typing import DType, Float, Params, PyTree

_BURST_SECONDS = 0.05
"""About how long a burst may take, so that streams are smooth and new requests wait little."""
_PAUSE_SECONDS = 1.0
"""Prompts come first, so that a decode step serves many slots; streams pause for about so long."""


class Engine:
    """Answers requests.

    Safe to use from several threads; whoever calls `step` advances all answers.

    Args:
        config: the model's.
        params: its parameters, on their devices.
        mesh: theirs; None for one device.
        num_slots: answers decoded together; up to 8 by default, as many as memory has room for.
        capacity: the most tokens of a prompt with its answer; the model's maximum by default, if
            memory has room.
        cache_dtype: of keys and values: the model's by default, or "int8".
        max_audio_bytes: audio embeddings kept.
        programs: those of another engine for the same model, to compile them once.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        mesh: Mesh | None = None,
        *,
        num_slots: int | None = None,
        capacity: int | None = None,
        cache_dtype: DType = None,
        max_audio_bytes: int = 2**28,
        programs: Programs | None = None,
    ) -> None:
        self.config, self.params, self.mesh = config, params, mesh
        self.programs = programs or Programs(config)
        self._unit = num_batch_shards(mesh)
        self.cache_dtype = np.dtype(cache_dtype or config.dtype)
        device = next(iter(jax.tree.leaves(params)[0].devices()))
        num_slots, capacity = choose_slots(
            config.text, self.cache_dtype, device, mesh, num_slots, capacity
        )
        self.num_slots = -(-num_slots // self._unit) * self._unit
        self.audio_cache = AudioCache(self._encode, config, max_audio_bytes, self._unit)
        self._lock = threading.RLock()
        self._state: Slots | None = None
        self._step_seconds = self._decoded = 0.0
        with self._on_mesh():
            self.buckets = Buckets(capacity, current_platform())
        self._scheduler = Scheduler(self.num_slots, self.buckets, self._copy)

    def _on_mesh(self) -> AbstractContextManager[object]:
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    # Whole batches.

    def logits(self, batch: UserBatch) -> Float[np.ndarray, "B T V"]:
        """Logits of every position, float32 (float64 for a float64 model)."""
        inputs = prepare_inputs(batch, self.config, self._unit)
        audio = None
        if inputs.waveform is not None and inputs.num_frames is not None:
            audio = AudioInput(inputs.waveform, inputs.num_frames)
        with self._on_mesh():
            logits = self.programs.logits(self.params, inputs.tokens, inputs.attention_mask, audio)
        return np.asarray(logits)[: len(batch["input_ids"])]

    def generate(self, batch: UserBatch, sampling: SamplingConfig) -> list[list[int]]:
        """New tokens of every row, including the stop id that ended it."""
        requests = requests_of_batch(batch, self.config, sampling)
        for request in requests:
            self.check(request)
        answers = [self.submit(request) for request in requests]
        self.finish(answers)
        return [answer.tokens for answer in answers]

    def run(self, requests: Iterable[Request]) -> Generator[Answer, None, None]:
        """Answers of many requests as they are finished, reading requests as they are needed."""
        source, running = iter(requests), list[Answer]()
        exhausted = False
        try:
            while running or not exhausted:
                while not exhausted and len(running) < 2 * self.num_slots:
                    request = next(source, None)
                    if request is None:
                        exhausted = True
                    else:
                        running.append(self.submit(request))
                self.step()
                done = [answer for answer in running if answer.finish_reason is not None]
                running = [answer for answer in running if answer.finish_reason is None]
                yield from done
        finally:
            for answer in running:
                self.cancel(answer)

    def finish(self, answers: Iterable[Answer]) -> None:
        """Runs until these are finished."""
        for answer in answers:
            while answer.finish_reason is None:
                self.step()

    # Requests.

    def check(self, request: Request) -> None:
        """Raises InputError for a request that no slot can hold."""
        limit, needed = self.buckets.capacity, request.num_entries
        if needed > limit:
            whose = "the model has"
            if limit < self.config.text.max_position_embeddings:
                whose = "a slot of this engine has"
            raise InputError(
                "prompt",
                f"with {request.sampling.max_new_tokens} new tokens it takes {needed} positions, "
                f"{whose} {limit}",
                "shorten it, or reduce --max-new-tokens",
            )

    def submit(self, request: Request) -> Answer:
        """Puts a request in the queue; `step` fills its answer. Raises InputError as `check`."""
        answer = Answer(request)
        self.enqueue(answer)
        return answer

    def enqueue(self, answer: Answer) -> None:
        """`submit` for an answer that the caller has made."""
        self.check(answer.request)
        with self._lock:
            self._scheduler.waiting.append(answer)

    def cancel(self, answer: Answer) -> None:
        """Ends an answer where it is."""
        with self._lock:
            self._scheduler.cancel(answer)

    def forget(self) -> None:
        """Empties free slots and the audio cache: later requests compute all of their prompts."""
        with self._lock:
            self._scheduler.forget()
            self.audio_cache.clear()

    def reset(self) -> None:
        """After `step` has raised an error: cancels all answers, and makes new slots, since the
        program that failed may have taken the old ones."""
        with self._lock:
            for answer in self._scheduler.unfinished():
                self._scheduler.cancel(answer)
            self._state = None
        self.forget()

    def num_running(self) -> int:
        """Answers in slots."""
        return sum(slot.answer is not None for slot in self._scheduler.slots)

    def num_waiting(self) -> int:
        """Answers in the queue."""
        return len(self._scheduler.waiting)

    def step(self) -> bool:
        """A call of prefill, a burst of decode steps, or both; whether there was anything to do."""
        with self._lock, self._on_mesh():
            self._scheduler.assign()
            slots = self._scheduler.slots
            prefilling = [slot for slot in slots if slot.chunks]
            if prefilling:
                self._prefill(prefilling)
            decoding = [s for s in slots if s.answer is not None and not s.chunks]
            if not decoding:
                self._decoded = time.perf_counter()
            is_due = time.perf_counter() - self._decoded > _PAUSE_SECONDS
            if decoding and (is_due or not any(slot.chunks for slot in slots)):
                self._decode(decoding)
            return bool(prefilling or decoding)

    # Compiling.

    def warm_up(self) -> None:
        """Compiles all programs that requests can need, in the order in which a user meets them."""
        for compile_one in self.compilations():
            compile_one()

    def compilations(self) -> Iterator[Callable[[], object]]:
        """Functions that compile a program each; all are `warm_up`."""
        programs, n = self.programs, self.num_slots
        state = self._abstract_state()
        active, scalars = np.zeros(n, bool), (np.int32(0), np.bool_(False))
        one_row = [np.zeros(1, np.int32)] if self._unit == 1 else []

        def decode(rows: np.ndarray | None) -> Iterator[Callable[[], object]]:
            for window in self.buckets.windows:
                arguments = self.params, state, rows, active, *scalars
                yield partial(self._compile, programs.decode, *arguments, window=window)

        def prefill(shapes: list[tuple[int, int, int]]) -> Iterator[Callable[[], object]]:
            for rows, size, window in shapes:
                prompts = self._prompts([], rows, size)
                arguments = self.params, state, prompts
                yield partial(self._compile, programs.prefill, *arguments, window=window)

        for audio in self.audio_cache.shapes():
            yield partial(self._compile, programs.encode, self.params, audio)
        first, later, groups = self.buckets.prefill_shapes(self._unit)
        yield from prefill(first)
        for rows in (*one_row, None):
            yield from decode(rows)
        yield from prefill(later)
        yield from prefill(groups)
        index = np.int32(0)
        for window in self.buckets.windows:
            yield partial(self._compile, programs.copy, state, index, index, index, window=window)

    def _compile(self, program: Program, *args: PyTree, **static: object) -> None:
        with self._on_mesh():
            program.compiled(*args, **static)

    def _abstract_state(self) -> Slots:
        with self._lock, self._on_mesh():
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(
                    x.shape, x.dtype, sharding=x.sharding if self.mesh else None
                ),
                self._device_state,
            )

    # Slots.

    @property
    def _device_state(self) -> Slots:
        if self._state is None:
            self._state = self.programs.empty(self.num_slots, self.buckets.length, self.cache_dtype)
        return self._state

    # Calls of the programs.

    def _encode(self, audio: AudioInput) -> Float[np.ndarray, "A P D"]:
        return np.asarray(self.programs.encode(self.params, audio))

    def _copy(self, source: Slot, destination: Slot, count: int) -> None:
        """Copies the first `count` entries."""
        self._state = self.programs.copy(
            self._device_state,
            np.int32(source.index),
            np.int32(destination.index),
            np.int32(count),
            window=self.buckets.decode_window(count),
        )

    def _prefill(self, prefilling: list[Slot]) -> None:
        """The next chunk of the first prompt; with those of others, if all are short."""
        first = min(prefilling, key=lambda s: s.answer.submitted if s.answer else 0.0)
        chunk, rows = first.chunks[0], [first]
        if first.is_short:
            same = [s for s in prefilling if s.is_short and s.chunks[0].size == chunk.size]
            rows = same[: group_rows(self._unit)]
        count = self._unit if len(rows) <= self._unit else group_rows(self._unit)
        prompts = self._prompts(rows, count, chunk.size)
        self._state, sampled = self.programs.prefill(
            self.params, self._device_state, prompts, window=chunk.window
        )
        for slot in rows:
            assert slot.answer is not None
            end = len(slot.content) + slot.chunks.pop(0).num_tokens
            slot.content = slot.answer.request.content[:end]
        last = [slot for slot in rows if not slot.chunks]
        if last:
            sampled = jax.tree.map(lambda x: x[None], jax.device_get(sampled))
            self._collect(sampled, dict(enumerate(rows)), 1)

    def _prompts(self, rows: list[Slot], count: int, size: int) -> Prompts:
        vocab, width = self.config.text.vocab_size, self.config.text.hidden_size
        settings = [SamplingConfig()] * count
        for i, slot in enumerate(rows):
            if slot.answer is not None and len(slot.chunks) == 1:  # its first token is sampled
                settings[i] = slot.answer.request.sampling
        prompts = Prompts(
            tokens=np.zeros((count, size), np.int32),
            num_tokens=np.zeros(count, np.int32),
            slots=np.full(count, self.num_slots, np.int32),
            start=np.zeros(count, np.int32),
            audio=np.zeros((count, size, width), self.programs.dtype),
            is_last=np.zeros(count, bool),
            in_prompt=np.zeros((count, vocab), bool),
            settings=RowSettings.of(settings),
        )
        for i, slot in enumerate(rows):
            assert slot.answer is not None
            request, start = slot.answer.request, len(slot.content)
            end = start + slot.chunks[0].num_tokens
            prompts.tokens[i, : end - start] = request.tokens[start:end]
            prompts.num_tokens[i], prompts.slots[i] = end - start, slot.index
            prompts.start[i], prompts.is_last[i] = start, end == request.tokens.size
            if prompts.is_last[i]:
                prompts.in_prompt[i, request.tokens] = True
            self._place_audio(prompts.audio[i], request, start, end)
        return prompts

    def _place_audio(
        self, row: Float[np.ndarray, "T D"], request: Request, start: int, end: int
    ) -> None:
        """Puts the embeddings of clips between two entries of a prompt into its row."""
        for clip, digest, at in zip(
            request.clips, request.digests, request.clip_starts, strict=True
        ):
            count = clip.num_tokens
            if at < end and at + count > start:
                embeds = self.audio_cache.embeddings(clip, digest)
                lo, hi = max(at, start), min(at + count, end)
                row[lo - start : hi - start] = embeds[lo - at : hi - at]

    def _decode(self, decoding: list[Slot]) -> None:
        active = np.zeros(self.num_slots, bool)
        active[[slot.index for slot in decoding]] = True
        rows, by_row = None, {slot.index: slot for slot in decoding}
        if len(decoding) == 1 and self._unit == 1:
            rows, by_row = np.array([decoding[0].index], np.int32), {0: decoding[0]}
        steps = BURST
        if self._step_seconds:
            steps = max(1, min(BURST, int(_BURST_SECONDS / self._step_seconds)))
        longest = max(len(slot.content) for slot in decoding)
        started = time.perf_counter()
        self._state, sampled = self.programs.decode(
            self.params,
            self._device_state,
            rows,
            active,
            np.int32(steps),
            np.bool_(bool(self._scheduler.waiting)),
            window=self.buckets.decode_window(longest),
        )
        done = self._collect(sampled, by_row, BURST)
        self._decoded = time.perf_counter()
        self._step_seconds = (self._decoded - started) / max(1, done)

    def _collect(self, sampled: Sampled, rows: dict[int, Slot], steps: int) -> int:
        """Adds tokens (steps, rows) to the answers; returns the steps that were made."""
        sampled, done = jax.device_get(sampled), 0
        for row, slot in rows.items():
            answer = slot.answer
            if answer is None or slot.chunks:
                continue
            settings = answer.request.sampling
            for i in range(steps):
                token = int(sampled.token[i, row])
                if token < 0:
                    break
                done = max(done, i + 1)
                if answer.generated:  # the token before has been decoded from, and has an entry
                    slot.content = np.append(slot.content, np.uint64(answer.generated[-1].token))
                top = zip(
                    sampled.top_ids[i, row, : settings.top_logprobs].tolist(),
                    sampled.top_logprobs[i, row, : settings.top_logprobs].tolist(),
                    strict=True,
                )
                info = TokenInfo(token, float(sampled.logprob[i, row]), list(top))
                answer.add(info)
                if answer.finish_reason is not None:
                    self._scheduler.release(slot)
                    break
        return done
