"""The server: routes, start and end."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HTTPRequest
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from uvicorn.protocols.http.h11_impl import H11Protocol

from qa_jax.api import LoadedModel
from qa_jax.config.serve import ServeConfig
from qa_jax.errors import InputError
from qa_jax.serve.endpoints import Endpoints
from qa_jax.serve.errors import ApiError
from qa_jax.serve.gate import Gate
from qa_jax.serve.prompts import ClipStore, PromptMaker
from qa_jax.serve.realtime import Realtime
from qa_jax.serve.runner import Runner
from qa_jax.serve.service import Served, Service
from qa_jax.serve.transcriptions import Transcriptions

_log = logging.getLogger("qa_jax.serve")
_IDLE_CHECKS = 4
_PAGE = Path(__file__).with_name("page")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of the page's content: from this server alone."""


def make_app(
    models: dict[str, LoadedModel],
    config: ServeConfig,
    *,
    keys: Sequence[str] = (),
    audio_hosts: Sequence[str] = (),
    is_raw: bool = False,
    warm_up: bool = True,
) -> Gate:
    """The server as an ASGI application.

    Args:
        models: by the names that requests give; the first is the default.
        config: limits.
        keys: of clients, any of which is taken; none for a server that needs none.
        audio_hosts: hosts that clips may be fetched from.
        is_raw: messages are raw prompts, without a chat template, as for the base model.
        warm_up: whether to compile every program before the first request.
    """
    store = ClipStore(config.cached_audio_mib * 2**20)
    served = [
        Served(
            name,
            PromptMaker(model, config, audio_hosts, is_raw, store),
            Runner(model.engine, config.max_queue),
        )
        for name, model in models.items()
    ]
    service = Service(served, config)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        for one in served:
            one.runner.start(warm_up)
        yield
        for one in served:
            await asyncio.to_thread(one.runner.close)

    app = Starlette(
        routes=_routes(service),
        lifespan=lifespan,
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            Exception: _server_error,
        },
    )

    return Gate(app, service, keys)


async def _index(_: HTTPRequest) -> Response:
    return FileResponse(_PAGE / "index.html", headers={"Content-Security-Policy": _POLICY})


def _routes(service: Service) -> list[BaseRoute]:
    text, speech = Endpoints(service), Transcriptions(service)
    page = [Route("/", _index), Mount("/page", StaticFiles(directory=_PAGE))]
    return [
        *(page if service.config.page else []),
        Route("/v1/chat/completions", text.chat, methods=["POST"]),
        Route("/v1/completions", text.completions, methods=["POST"]),
        Route("/v1/audio/transcriptions", speech.transcribe, methods=["POST"]),
        Route("/v1/audio/translations", speech.translate, methods=["POST"]),
        Route("/v1/models", text.models),
        Route("/v1/models/{name:path}", text.models),
        WebSocketRoute("/v1/realtime", Realtime(service, speech).__call__),
        Route("/tokenize", text.tokenize, methods=["POST"]),
        Route("/detokenize", text.detokenize, methods=["POST"]),
        Route("/health", text.health),
        Route("/ready", text.ready),
        Route("/metrics", text.metrics),
    ]


async def _api_error(_: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _http_error(http: HTTPRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, f"{http.method} {http.url.path}: {error.detail}")
    return JSONResponse(told.body(), error.status_code, error.headers)


async def _server_error(http: HTTPRequest, error: Exception) -> Response:
    told = ApiError(500, f"an error of the server's; see its log for request {http.state.id}")
    return JSONResponse(told.body(), 500)


class _Protocol(H11Protocol):
    """uvicorn's, which closes connections on which no request arrives, or a part of one."""

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._idle_checks = 0
        self._check_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle_timer.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._idle_timer.cancel()
        super().handle_websocket_upgrade(event)

    def _check_idle(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        self._idle_checks = self._idle_checks + 1 if is_idle else 0
        if self._idle_checks > _IDLE_CHECKS:
            self.transport.close()
            return
        seconds = self.timeout_keep_alive / _IDLE_CHECKS
        self._idle_timer = self.loop.call_later(seconds, self._check_idle)


class _Server(uvicorn.Server):
    """uvicorn's, for which a signal that it has obeyed is no failure."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def start_logs() -> None:
    """Writes the server's log to stderr: a line of JSON for each request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("qa_jax", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("qa_jax").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def make_server(app: Gate, config: ServeConfig) -> tuple[uvicorn.Server, socket.socket]:
    """The server, and the socket to run it with; raises InputError if the port is taken."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise InputError(
            "--port", f"{config.host}:{config.port} cannot be listened on ({error.strerror})",
            "give another one",
        ) from None  # fmt: skip
    settings = uvicorn.Config(
        app,
        http=_Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=config.max_connections,
        timeout_keep_alive=math.ceil(config.receive_seconds),
        timeout_graceful_shutdown=math.ceil(config.request_seconds),
        ws_max_size=config.max_body_mib * 2**20,
    )
    return _Server(settings), listener


def run_app(app: Gate, config: ServeConfig) -> None:
    """Serves until SIGTERM or Ctrl-C; requests that are being answered are finished."""
    server, listener = make_server(app, config)
    host, port = listener.getsockname()[:2]
    _log.info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    server.run(sockets=[listener])
