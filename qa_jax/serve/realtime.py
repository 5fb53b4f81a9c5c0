"""WebSocket /v1/realtime: transcription while audio comes, in vLLM's protocol.

The server sends session.created. The client sends session.update with a model, then
input_audio_buffer.append with base64 of 16-bit samples at 16 kHz, mono, in pieces of any size, and
input_audio_buffer.commit with "final": true at the end. The server sends transcription.delta as
soon as a window of the audio has ended and is answered, then transcription.done, or error.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import math
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from qa_jax.config import SAMPLE_RATE, JsonDict, num_audio_tokens, num_frames
from qa_jax.data.windows import WindowSplitter, join_texts
from qa_jax.serve.errors import ApiError
from qa_jax.serve.schema import TranscriptionBody, parse_body, parse_json
from qa_jax.serve.service import Served, Service
from qa_jax.serve.transcriptions import Transcriptions
from qa_jax.typing import Float

_PENDING_WINDOWS = 4
"""Windows that wait for their answers; then no more audio is read."""
_SESSION_FIELDS = {"model", "language", "prompt", "temperature", "seed"}


class Realtime:
    """Handler of the WebSocket.

    Args:
        service: what endpoints share.
        speech: makes requests of windows, and answers them.
    """

    def __init__(self, service: Service, speech: Transcriptions) -> None:
        self.service, self._speech = service, speech

    async def __call__(self, socket: WebSocket) -> None:
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
        created = {"id": f"sess-{uuid.uuid4().hex}", "model": next(iter(self.service.models))}
        await socket.send_json({"type": "session.created", **created})
        try:
            await self._transcribe(socket)
        except ApiError as error:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await socket.send_json({"type": "error", **error.body()})
                await socket.close(1008)
        except WebSocketDisconnect:
            pass
        else:
            await socket.close()

    async def _transcribe(self, socket: WebSocket) -> None:
        """One transcription; the reader waits while too many windows are unanswered."""
        settings, first = await self._settings(socket)
        body, _ = parse_body(TranscriptionBody, settings)
        served = self.service.model(body.model)
        served.runner.check_room()
        instruction = self._speech.instruction(served, "transcribe", body)
        windows: asyncio.Queue[Float[np.ndarray, " S"] | None] = asyncio.Queue(_PENDING_WINDOWS)

        async def read() -> None:
            async with aclosing(self._windows(socket, first)) as found:
                async for window in found:
                    await windows.put(window)
            await windows.put(None)

        reading = asyncio.create_task(read())
        try:
            await self._answer(socket, served, instruction, body, windows, reading)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _answer(
        self,
        socket: WebSocket,
        served: Served,
        instruction: str,
        body: TranscriptionBody,
        windows: asyncio.Queue[Float[np.ndarray, " S"] | None],
        reading: asyncio.Task[None],
    ) -> None:
        text, num_samples = "", 0
        while True:
            waiting = asyncio.ensure_future(windows.get())
            await asyncio.wait({waiting, reading}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done() and reading.done() and windows.empty():
                waiting.cancel()
                reading.result()  # raises what ended it
            window = await waiting
            if window is None:
                break
            num_samples += window.size
            requests = await self.service.in_thread(
                self._speech.windows, served, window, instruction, body
            )
            async with aclosing(self._speech.segments(socket, served, requests)) as segments:
                async for segment in segments:
                    joined = join_texts([text, segment.text])
                    await socket.send_json(
                        {"type": "transcription.delta", "delta": joined[len(text) :]}
                    )
                    text = joined
        usage = {"type": "duration", "seconds": math.ceil(num_samples / SAMPLE_RATE)}
        await socket.send_json({"type": "transcription.done", "text": text, "usage": usage})

    async def _settings(self, socket: WebSocket) -> tuple[JsonDict, JsonDict]:
        """Settings of the session, and the first event that is none."""
        settings = JsonDict()
        while True:
            event = await self._receive(socket)
            if event.get("type") != "session.update":
                return settings, event
            given = {k: v for k, v in event.items() if k not in ("type", "event_id")}
            given |= given.pop("session", None) or {}
            for name in given:
                if name not in _SESSION_FIELDS:
                    raise ApiError(400, f"{name}: unknown field", name, "unknown_field")
            settings |= given

    async def _windows(
        self, socket: WebSocket, event: JsonDict
    ) -> AsyncGenerator[Float[np.ndarray, " S"], None]:
        """Windows of the audio as soon as they are certain."""
        config = self.service.config
        splitter = WindowSplitter(config.window_seconds)
        kept, start, size = np.zeros(0, np.float32), 0, 0
        while True:
            found = []
            if event.get("type") == "input_audio_buffer.append":
                samples = _samples(event)
                size += samples.size
                if size > config.max_audio_seconds * SAMPLE_RATE:
                    limit = f"{config.max_audio_seconds:g} s"
                    raise ApiError(400, f"audio: longer than {limit}", "audio", "too_long")
                kept = np.concatenate([kept, samples])
                found = splitter.push(samples)
            elif event.get("type") != "input_audio_buffer.commit":
                raise ApiError(400, f"type: {event.get('type')!r:.60} is unknown", "type")
            is_final = event.get("type") == "input_audio_buffer.commit" and event.get("final", True)
            if is_final:
                if num_audio_tokens(num_frames(size)) < 1:
                    raise ApiError(400, f"audio: {size} samples give no audio token", "audio")
                found = splitter.finish()
            for first, last in found:
                yield kept[first - start : last - start]
                kept, start = kept[last - start :], last
            if is_final:
                return
            event = await self._receive(socket)

    async def _receive(self, socket: WebSocket) -> JsonDict:
        seconds = self.service.config.receive_seconds
        try:
            async with asyncio.timeout(seconds):
                return parse_json((await socket.receive_text()).encode())
        except TimeoutError:
            raise ApiError(408, f"nothing came in {seconds:g} s", code="timeout") from None
        except (KeyError, UnicodeError):
            raise ApiError(400, "a message is not text", code="invalid_json") from None


def _samples(event: JsonDict) -> Float[np.ndarray, " S"]:
    """Samples of an input_audio_buffer.append; raises ApiError."""
    try:
        raw = base64.b64decode(event["audio"], validate=True)
        return np.frombuffer(raw, "<i2").astype(np.float32) / 2**15
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ApiError(
            400, f"audio: not base64 of 16-bit samples ({error})", "audio", "invalid_audio"
        ) from None
