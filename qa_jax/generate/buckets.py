"""The shapes that generation compiles programs for."""

from __future__ import annotations

import functools
from typing import NamedTuple

from qa_jax.generate.slots import BURST

CHUNKS = (64, 128, 256, 512, 1024)
"""Tokens of a prompt that a call of prefill takes, one of these; longer prompts take several."""
GROUP_TOKENS = 128
"""Prompts of at most so many tokens are prefilled in groups of `GROUP_ROWS`."""
GROUP_ROWS = 8
_SMALLEST_WINDOW = 256
_CALL_COST = {"cpu": 32, "gpu": 256, "tpu": 256}
"""What a call costs beside its tokens, in tokens: mostly reading the weights."""
_WINDOW_COST = 8192
"""Attending to so many entries costs as much as the rest of the model."""


class Chunk(NamedTuple):
    """A part of a prompt: a call of prefill.

    Attributes:
        size: tokens that the program takes.
        num_tokens: of which so many are the prompt's.
        window: see `CacheRows`.
    """

    size: int
    num_tokens: int
    window: int


class Buckets:
    """Shapes for slots of a given length.

    Attributes:
        capacity: tokens of a prompt with its answer.
        length: entries of a slot: more, so that a padded chunk never passes its end.
        windows: entries that decoding attends to, ascending.

    Args:
        capacity: as above.
        platform: "cpu", "gpu" or "tpu".
    """

    def __init__(self, capacity: int, platform: str = "cpu") -> None:
        self.capacity = capacity
        self.length = (-(-capacity // CHUNKS[0]) + 1) * CHUNKS[0]
        window = _SMALLEST_WINDOW
        smaller = []
        while window < self.length:
            smaller.append(window)
            window *= 2
        self.windows = [*smaller, self.length]
        self.prefill_windows = self.windows[::-1][::2][::-1]
        self.chunks = [size for size in CHUNKS if size <= self.length]
        self._call_cost = _CALL_COST[platform]
        self._best = functools.cache(self._best_uncached)

    def decode_window(self, length: int) -> int:
        """The window for slots of at most `length` entries before a burst."""
        return next(w for w in self.windows if w >= min(length + BURST, self.length))

    def plan(self, start: int, end: int) -> tuple[float, list[Chunk]]:
        """The cheapest way to prefill entries from `start` to `end`: its cost, and the calls."""
        chunks, cost = [], 0.0
        largest = self.chunks[-1]
        while end - start > largest + CHUNKS[0]:
            chunks.append(Chunk(largest, largest, self._window(start, largest)))
            cost += self._cost(start, largest)
            start += largest
        rest, last = self._best(start, end - start)
        return cost + rest, chunks + list(last)

    def _window(self, start: int, size: int) -> int:
        if start == 0:
            return 0
        return next(w for w in self.prefill_windows if w >= start + size)

    def _cost(self, start: int, size: int) -> float:
        keys = self._window(start, size) or size / 2
        return self._call_cost + size * (1 + keys / _WINDOW_COST)

    def _best_uncached(self, start: int, count: int) -> tuple[float, tuple[Chunk, ...]]:
        if count == 0:
            return 0.0, ()
        found = []
        for size in self.chunks:
            if start + size > self.length or (size >= 2 * count and size > self.chunks[0]):
                continue
            taken = min(size, count)
            cost, rest = self._best(start + taken, count - taken)
            chunk = Chunk(size, taken, self._window(start, size))
            found.append((self._cost(start, size) + cost, (chunk, *rest)))
        return min(found, key=lambda x: x[0])

    def prefill_shapes(self, unit: int) -> tuple[list[tuple[int, int, int]], ...]:
        """(rows, tokens, window) of every prefill: of first chunks, of later ones, of groups.

        `unit` divides rows: the number of batch shards.
        """
        rows = group_rows(unit)
        first = [(unit, size, 0) for size in self.chunks]
        later = [(unit, t, w) for w in self.prefill_windows for t in self.chunks if t < w]
        groups = [(rows, size, 0) for size in self.chunks if size <= GROUP_TOKENS]
        return first, later, groups


def group_rows(unit: int) -> int:
    """Rows of a grouped prefill, a multiple of `unit`."""
    return -(-GROUP_ROWS // unit) * unit
