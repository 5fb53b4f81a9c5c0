"""What the endpoints share: the models by name, and the way from requests to a response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple, TypeVar

import anyio.to_thread
from starlette.requests import HTTPConnection
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from qa_jax.config import JsonDict
from qa_jax.config.serve import ServeConfig
from qa_jax.errors import suggest
from qa_jax.generate import Answer, Request
from qa_jax.serve.errors import ApiError
from qa_jax.serve.metrics import Metrics, reason_of
from qa_jax.serve.prompts import PromptMaker
from qa_jax.serve.responses import DONE, Form, Growth, event, usage
from qa_jax.serve.runner import Answers, Runner
from qa_jax.serve.schema import StreamOptions

_T = TypeVar("_T")


class Served(NamedTuple):
    """A model that is served."""

    name: str
    prompts: PromptMaker
    runner: Runner


class Service:
    """The server's state.

    Attributes:
        models: by name; the first is the default.
        config: limits.
        metrics: what is counted.
    """

    def __init__(self, models: Sequence[Served], config: ServeConfig) -> None:
        self.models = {served.name: served for served in models}
        self.config = config
        self.metrics = Metrics({served.name: served.runner for served in models})
        self._readers = anyio.CapacityLimiter(2)

    def model(self, name: str) -> Served:
        """A model by its name, or the only one if none is given; raises ApiError."""
        if not name and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise ApiError(
                404, f"model: {name!r} is not served; {suggest(name, self.models)}", "model",
                "model_not_found",
            )  # fmt: skip
        return self.models[name]

    async def in_thread(self, function: Callable[..., _T], *args: object) -> _T:
        """Runs what would hold up the event loop: decoding clips, tokenizing."""
        return await anyio.to_thread.run_sync(lambda: function(*args), limiter=self._readers)

    async def respond(
        self,
        http: HTTPRequest,
        served: Served,
        form: Form,
        requests: Sequence[Request],
        num_prompts: int,
        stream: StreamOptions | None,
    ) -> Response:
        """The response to requests, of which each prompt has the same number; a stream if there are
        options for one."""
        if stream is not None:
            return EventStream(
                lambda: self._chunks(http, served, form, requests, num_prompts, stream)
            )
        async with self.answers(http, served, requests, num_prompts) as group:
            await group.finish()
        return JSONResponse(form.whole(group.items, num_prompts))

    @asynccontextmanager
    async def answers(
        self,
        http: HTTPConnection,
        served: Served,
        requests: Sequence[Request],
        num_prompts: int = 1,
        is_admitted: bool = False,
    ) -> AsyncIterator[Answers]:
        """`Runner.answer` within the time for it; answers are counted and logged at the end."""
        seconds = self.config.request_seconds
        async with served.runner.answer(requests, is_admitted) as group:
            try:
                async with asyncio.timeout(seconds):
                    yield group
            except TimeoutError:
                raise ApiError(504, f"no answer in {seconds:g} s", code="timeout") from None
            finally:
                num_choices = len(requests) // num_prompts
                self.metrics.count_answers(served.name, group.items, num_choices)
                _log_answers(http.state.log, served, group.items)

    async def _chunks(
        self,
        http: HTTPRequest,
        served: Served,
        form: Form,
        requests: Sequence[Request],
        num_prompts: int,
        options: StreamOptions,
    ) -> AsyncGenerator[str, None]:
        async with self.answers(http, served, requests, num_prompts) as group:
            growths = [Growth(answer) for answer in group.items]
            if form.kind == "chat":
                yield form.chunk([form.first(i) for i in range(len(growths))])

            def told() -> JsonDict | None:
                is_told = options.include_usage and options.continuous_usage_stats
                return usage(group.items, num_prompts) if is_told else None

            async for _ in group.updates():
                for i, growth in enumerate(growths):
                    is_end, part = growth.ends(), growth.take()
                    if part.text or part.tokens:
                        yield form.chunk([form.part(i, part)], told())
                    if is_end:
                        yield form.chunk([form.last(i, growth.answer)], told())
            if options.include_usage:
                yield form.chunk([], usage(group.items, num_prompts))
        yield DONE


def _log_answers(log: JsonDict, served: Served, answers: Sequence[Answer]) -> None:
    """Adds answers to a request's line in the log."""
    log["model"] = served.name
    for name, count in (
        ("prompt_tokens", sum(a.request.tokens.size for a in answers)),
        ("cached_tokens", sum(a.num_cached_tokens for a in answers)),
        ("completion_tokens", sum(len(a.generated) for a in answers)),
    ):
        log[name] = log.get(name, 0) + count
    first = min((a.first_token - a.submitted for a in answers if a.first_token), default=None)
    if first is not None:
        log.setdefault("first_token_seconds", round(first, 4))
    reasons = {reason_of(a) for a in answers}
    log["finish_reasons"] = sorted(reasons | set(log.get("finish_reasons", [])))


class EventStream(Response):
    """Server-sent events. Whatever is refused before the first event is an ordinary error; after
    it, the error is an event, and the last.

    Args:
        chunks: makes the iterator of events.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: Callable[[], AsyncGenerator[str, None]]) -> None:
        super().__init__()
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._chunks()) as chunks:
            chunk: str | None = await anext(chunks)
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),
                *(h for h in self.raw_headers if h[0].startswith(b"x-")),
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            try:
                while chunk is not None:
                    await _send_body(send, chunk, True)
                    chunk = await anext(chunks, None)
            except ApiError as error:
                await _send_body(send, event(error.body()), True)
            await _send_body(send, "", False)


async def _send_body(send: Send, text: str, more: bool) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
