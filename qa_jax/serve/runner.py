"""An engine in a thread of its own, for the tasks of an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np

from qa_jax.data import load_audio
from qa_jax.errors import InputError
from qa_jax.generate import Answer, Engine, Request
from qa_jax.serve.errors import ApiError, overloaded

_log = logging.getLogger("qa_jax.serve")


class Answers:
    """Answers that are waited for together.

    Attributes:
        items: those answers.
        error: what went wrong with the engine meanwhile.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.items = [Answer(request) for request in requests]
        self.error: Exception | None = None
        self.changed = asyncio.Event()
        self.progress = 0

    @property
    def num_unfinished(self) -> int:
        return sum(answer.finish_reason is None for answer in self.items)

    async def updates(self) -> AsyncIterator[None]:
        """Yields when tokens have come, the last time when all answers are finished."""
        is_done = False
        while not is_done:
            await self.changed.wait()
            self.changed.clear()
            is_done = not self.num_unfinished
            if self.error is not None:
                raise ApiError(500, "the engine failed; try again", code="engine_error")
            yield

    async def finish(self) -> None:
        """Waits until all are finished."""
        async for _ in self.updates():
            pass


class Runner:
    """Advances an engine as long as it has requests.

    Args:
        engine: nothing else may call its `step`.
        max_queue: answers that may wait for a slot.
    """

    def __init__(self, engine: Engine, max_queue: int) -> None:
        self.engine, self.max_queue = engine, max_queue
        self.is_ready = False
        self.failure: BaseException | None = None
        self._wake = threading.Condition()
        self._submitted: list[Answers] = []
        self._cancelled: list[Answers] = []
        self._live: list[Answers] = []
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, warm_up: bool = True) -> None:
        """Compiles all programs, then answers. To be called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._warm_up = warm_up
        self._thread.start()

    def close(self) -> None:
        """Cancels what is left, and ends the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    @property
    def num_running(self) -> int:
        """Answers in slots."""
        return self.engine.num_running()

    @property
    def num_waiting(self) -> int:
        """Answers that wait for a slot."""
        with self._wake:
            groups = [*self._submitted, *self._live]
        return max(0, sum(group.num_unfinished for group in groups) - self.num_running)

    def check_room(self, count: int = 1) -> None:
        """Raises ApiError if the engine is not ready, or more answers may not wait."""
        if not self.is_ready:
            raise ApiError(
                503, "the model is loading", code="loading", headers={"Retry-After": "5"}
            )
        free = self.engine.num_slots - self.num_running
        waiting = self.num_waiting
        if waiting + count > self.max_queue + free:
            raise overloaded(f"{waiting} answers are waiting; try again later")

    @asynccontextmanager
    async def answer(
        self, requests: Sequence[Request], is_admitted: bool = False
    ) -> AsyncIterator[Answers]:
        """Answers to requests, which end with the context. Raises ApiError for a request that no
        slot can hold and, unless it is admitted, as `check_room`."""
        for request in requests:
            try:
                self.engine.check(request)
            except InputError as error:
                raise ApiError(400, str(error), None, "context_length_exceeded") from None
        if not is_admitted:
            self.check_room(len(requests))
        group = Answers(requests)
        with self._wake:
            self._submitted.append(group)
            self._wake.notify()
        try:
            yield group
        finally:
            if group.num_unfinished:
                with self._wake:
                    self._cancelled.append(group)
                    self._wake.notify()

    def _run(self) -> None:
        try:
            if self._warm_up:
                load_audio((np.zeros(4800), 48_000))  # imports what decodes and resamples
                for compile_one in self.engine.compilations():
                    if self._is_closing:
                        return
                    compile_one()
            self.is_ready = True
            _log.info("ready")
            while self._take():
                self._step()
                self._publish()
        except BaseException as error:  # told by /health
            _log.exception("the engine's thread ended")
            self.failure, self.is_ready = error, False
        finally:
            for group in [*self._submitted, *self._live]:
                self._fail(group, RuntimeError("the engine's thread ended"))

    def _take(self) -> bool:
        """Waits for something to do, and gives the engine what came; False at the end."""
        with self._wake:
            while not (self._submitted or self._cancelled or self._live or self._is_closing):
                self._wake.wait()
            submitted, self._submitted = self._submitted, []
            cancelled, self._cancelled = self._cancelled, []
            self._live = [*self._live, *submitted]
        for group in submitted:
            for answer in group.items:
                self.engine.enqueue(answer)
        for group in cancelled:
            for answer in group.items:
                self.engine.cancel(answer)
        return not self._is_closing

    def _step(self) -> None:
        try:
            self.engine.step()
        except Exception as error:
            _log.exception("the engine failed")
            for group in self._live:
                self._fail(group, error)
            self.engine.reset()

    def _publish(self) -> None:
        changed = []
        for group in self._live:
            progress = sum(len(a.generated) + bool(a.finish_reason) for a in group.items)
            if progress != group.progress:
                group.progress = progress
                changed.append(group)
        if changed:
            self._live = [group for group in self._live if group.num_unfinished]
            self._notify(changed)

    def _fail(self, group: Answers, error: Exception) -> None:
        group.error = error
        self._notify([group])

    def _notify(self, groups: list[Answers]) -> None:
        def set_all() -> None:
            for group in groups:
                group.changed.set()

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(set_all)
