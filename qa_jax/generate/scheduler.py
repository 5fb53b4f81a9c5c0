"""Which request gets which slot, and what of it the slots contain already."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from qa_jax.generate.buckets import GROUP_TOKENS, Buckets, Chunk
from qa_jax.generate.requests import Answer, Request
from qa_jax.typing import UInt

_MIN_COPY = 64
"""Entries worth copying from another slot, or waiting for."""


class Slot:
    """What a slot contains.

    Attributes:
        index: its row in the state.
        content: of its entries, as `Request.content`.
        answer: the answer being prefilled or decoded; None if the slot is free.
        chunks: calls of prefill still to be made.
        used: when, for choosing the slot used least lately.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.content = np.zeros(0, np.uint64)
        self.answer: Answer | None = None
        self.chunks: list[Chunk] = []
        self.used = 0

    @property
    def is_short(self) -> bool:
        """Whether a prompt is prefilled from its beginning in one small call."""
        return (
            len(self.chunks) == 1
            and not len(self.content)
            and self.chunks[0].size <= GROUP_TOKENS
            and self.chunks[0].window == 0
        )


class Scheduler:
    """The queue and the slots. A free slot keeps its entries until it is needed.

    Args:
        num_slots: slots.
        buckets: shapes of the programs.
        copy: copies the first entries of a slot to another: (source, destination, count).
    """

    def __init__(
        self, num_slots: int, buckets: Buckets, copy: Callable[[Slot, Slot, int], None]
    ) -> None:
        self.slots = [Slot(i) for i in range(num_slots)]
        self.waiting: deque[Answer] = deque()
        self._buckets, self._copy = buckets, copy
        self._clock = 0

    def unfinished(self) -> list[Answer]:
        """Answers in slots and in the queue."""
        return [s.answer for s in self.slots if s.answer is not None] + list(self.waiting)

    def cancel(self, answer: Answer) -> None:
        """Ends an answer where it is, and frees its slot or its place in the queue."""
        if answer.finish_reason is not None:
            return
        answer.finish("cancelled")
        if answer in self.waiting:
            self.waiting.remove(answer)
        for slot in self.slots:
            if slot.answer is answer:
                self.release(slot)

    def release(self, slot: Slot) -> None:
        """Frees a slot."""
        self._clock += 1
        slot.answer, slot.chunks, slot.used = None, [], self._clock

    def forget(self) -> None:
        """Empties free slots."""
        for slot in self.slots:
            if slot.answer is None:
                slot.content = slot.content[:0]

    def assign(self) -> None:
        """Gives free slots to waiting requests, in their order."""
        while self.waiting:
            free = [slot for slot in self.slots if slot.answer is None]
            if not free:
                return
            request = self.waiting[0].request
            slot, source, start = self._choose(request, free)
            pending = [
                common_prefix(request.content, s.answer.request.content)
                for s in self.slots
                if s.answer is not None and s.chunks
            ]
            if max(pending, default=0) >= start + _MIN_COPY:
                return  # another prompt is about to compute its beginning
            answer = self.waiting.popleft()
            if source is not None:
                self._copy(source, slot, start)
            slot.answer, slot.content = answer, request.content[:start]
            slot.chunks = self._buckets.plan(start, request.tokens.size)[1]
            answer.num_cached_tokens, answer.started = start, time.perf_counter()

    def _choose(self, request: Request, free: list[Slot]) -> tuple[Slot, Slot | None, int]:
        """A slot, a slot to copy the beginning from, and how many entries are there already."""
        # The last token is always computed: its logits are needed.
        most = request.tokens.size - 1

        def cost(start: int) -> float:
            return self._buckets.plan(start, most + 1)[0]

        common = {s.index: min(common_prefix(request.content, s.content), most) for s in self.slots}
        own = max(free, key=lambda s: (common[s.index], -s.used))
        start = common[own.index]
        if start and cost(start) >= cost(0):
            start = 0
        other = max(self.slots, key=lambda s: common[s.index])
        longer = common[other.index]
        if other is not own and longer >= start + _MIN_COPY and cost(longer) < cost(start):
            # Not over the beginning that it is copied from.
            return min(free, key=lambda s: (s is other, s.used)), other, longer
        if not start:
            own = min(free, key=lambda s: (len(s.content) > 0, s.used))
        return own, None, start


def common_prefix(a: UInt[np.ndarray, " T"], b: UInt[np.ndarray, " S"]) -> int:
    """Length of the common prefix of two sequences."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if differs.size else n
