"""What every connection passes first: its key, its size, its time, its id, and the log."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qa_jax.config import JsonDict
from qa_jax.serve.errors import ApiError
from qa_jax.serve.service import Service

_log = logging.getLogger("qa_jax.access")
_OPEN = ("/health", "/ready", "/", "/page/")
"""Without a key: probes, and the page, which asks for it."""
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
_BODIES = 16
"""Bodies of the largest size that are held at once, of all requests together."""
_SEND_SECONDS = 60.0
"""For a part of a response, to a client that reads slowly."""


class Gate:
    """ASGI middleware around all routes.

    A request's body is read whole, within limits; while it is answered, a client that leaves ends
    the work.

    Args:
        app: the routes.
        service: has limits, and counts responses.
        keys: any of which is the password; empty for a server that needs none.
    """

    def __init__(self, app: ASGIApp, service: Service, keys: Sequence[str]) -> None:
        self.app, self.service, self.config = app, service, service.config
        self._keys = [key.encode() for key in keys]
        self._num_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        started, state = time.perf_counter(), scope.setdefault("state", {})
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        given = headers.get("x-request-id", "")
        state["id"] = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state["log"] = {}
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            state["is_sent"] = is_last
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", state["id"].encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            async with asyncio.timeout(_SEND_SECONDS):
                await send(message)

        try:
            if scope["type"] == "websocket":
                await self._websocket(scope, headers, receive, send)
            else:
                await self._http(scope, headers, receive, send_with_id)
        except (ConnectionError, TimeoutError):
            pass  # the client has gone, or does not read
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self.service.metrics.responses.labels(route, str(status)).inc()
            _write_log(scope, state, status, seconds)

    async def _websocket(
        self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        try:
            self._check_host(headers)
            scope["state"]["owner"] = self._check_key(headers, websocket_key(headers))
        except ApiError as error:
            await send({"type": "websocket.close", "code": 1008, "reason": error.message[:120]})
            return
        await self.app(scope, receive, send)

    async def _http(
        self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        size = 0
        try:
            path = scope["path"]
            if not (path in _OPEN[:3] or path.startswith(_OPEN[3])):
                scope["state"]["owner"] = self._check_key(headers)
            self._check_host(headers)
            self._check_size(headers)
            body = bytearray()
            try:
                async with asyncio.timeout(self.config.receive_seconds):
                    async for part in _parts(receive):
                        size += len(part)
                        self._num_bytes += len(part)
                        body += part
                        self._check_size({"content-length": str(size)})
            except TimeoutError:
                raise ApiError(408, "the request was not sent in time", code="timeout") from None
            await _while_connected(self.app, scope, bytes(body), receive, send)
        except ApiError as error:
            await _refuse(scope, send, error)
        finally:
            self._num_bytes -= size

    def _check_key(self, headers: dict[str, str], other: str = "") -> str:
        """Whose request it is; raises ApiError without a valid key."""
        if not self._keys:
            return ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else other
        # All are compared, so that the time tells nothing.
        found = [hmac.compare_digest(given.encode(), known) for known in self._keys]
        if not any(found):
            raise ApiError(
                401,
                "no valid key; send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return str(found.index(True))

    def _check_host(self, headers: dict[str, str]) -> None:
        """A server without a key listens on loopback alone; pages of other hosts, which a browser
        on this machine may have open, may not use it, also if their name stands for it."""
        if self._keys:
            return
        host = headers.get("host", "")
        origin = headers.get("origin", f"http://{host}").partition("://")[2]
        if origin == host and _is_own_name(host):
            return
        raise ApiError(
            403,
            f"pages of {origin} at {host} may not use a server without a key; set QA_JAX_API_KEYS",
            code="host",
        )

    def _check_size(self, headers: dict[str, str]) -> None:
        limit = self.config.max_body_mib * 2**20
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise ApiError(400, "Content-Length is no number")
        if int(length) > limit:
            raise ApiError(413, f"the body is over {limit} bytes", code="too_large")
        if self._num_bytes > _BODIES * limit:
            raise ApiError(
                429, "too many large requests", code="busy", headers={"Retry-After": "1"}
            )


def _is_own_name(host: str) -> bool:
    """Whether a Host is localhost or an address, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def websocket_key(headers: dict[str, str]) -> str:
    """The key among a WebSocket's subprotocols, where a browser can put it, as OpenAI's."""
    prefix = "openai-insecure-api-key."
    offered = [p.strip() for p in headers.get("sec-websocket-protocol", "").split(",")]
    return next((p.removeprefix(prefix) for p in offered if p.startswith(prefix)), "")


async def _parts(receive: Receive) -> AsyncGenerator[bytes, None]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _while_connected(
    app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send
) -> None:
    """Runs the app until it has answered, or the client has gone."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    answering = asyncio.ensure_future(app(scope, replay, send))
    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if scope["state"].get("is_sent"):
            await asyncio.wait({answering})
        elif not answering.done():
            scope["state"]["log"]["disconnected"] = True
    finally:
        leaving.cancel()
        if not answering.done():
            answering.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)
    if not answering.cancelled():
        answering.result()


async def _refuse(scope: Scope, send: Send, error: ApiError) -> None:
    headers = {**error.headers, "Connection": "close"}
    response = JSONResponse(error.body(), error.status, headers)
    await response(scope, _nothing, send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _write_log(scope: Scope, state: JsonDict, status: int, seconds: float) -> None:
    """A line of JSON; texts and clips are never in it."""
    client = scope.get("client") or ("", 0)
    line = {
        "id": state["id"],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "client": client[0],
        "method": scope.get("method", "WS"),
        "path": scope["path"][:200],
        "status": status,
        "seconds": round(seconds, 4),
        **state["log"],
    }
    _log.info(json.dumps(line))
