"""POST /v1/audio/transcriptions and /v1/audio/translations: clips of any length, in windows."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import numpy as np
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from qa_jax.config import SAMPLE_RATE, JsonDict
from qa_jax.data.windows import join_texts
from qa_jax.errors import InputError
from qa_jax.generate.transcripts import (
    Segment,
    Window,
    segment_of,
    to_srt,
    to_vtt,
    window_requests,
)
from qa_jax.serve.errors import ApiError
from qa_jax.serve.responses import event
from qa_jax.serve.schema import SamplingBody, TranscriptionBody, parse_body
from qa_jax.serve.service import EventStream, Served, Service
from qa_jax.typing import Float

_INSTRUCTIONS = {
    # (chat template, raw prompt of the base model); the raw ones are the authors' own.
    "transcribe": ("Transcribe.", "Detect the language and recognize the speech: <|{language}|>"),
    "translate": (
        "Translate the speech into English.",
        "Detect the language and translate the speech into English: <|{language}|>",
    ),
}
_LISTS = ("timestamp_granularities", "include")


class Transcriptions:
    """Handlers of the endpoints for speech.

    Args:
        service: what endpoints share.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    async def transcribe(self, http: HTTPRequest) -> Response:
        """POST /v1/audio/transcriptions."""
        return await self._run(http, "transcribe")

    async def translate(self, http: HTTPRequest) -> Response:
        """POST /v1/audio/translations, into English."""
        return await self._run(http, "translate")

    async def _run(self, http: HTTPRequest, task: str) -> Response:
        fields, content, name = await _read_form(http)
        body, _ = parse_body(TranscriptionBody, fields)
        served = self.service.model(body.model)
        served.runner.check_room()
        if body.stream and body.response_format not in ("json", "text"):
            raise ApiError(400, "stream: only with response_format json or text", "stream")
        instruction = self.instruction(served, task, body)

        def make() -> tuple[float, list[Window]]:
            waveform = served.prompts.read_file(content, name, long_audio="window")
            windows = self.windows(served, waveform, instruction, body)
            return waveform.size / SAMPLE_RATE, windows

        seconds, windows = await self.service.in_thread(make)
        if body.stream:
            has_times = bool(body.timestamp_granularities)
            return EventStream(lambda: self._events(http, served, windows, has_times))
        async with aclosing(self.segments(http, served, windows)) as found:
            segments = [segment async for segment in found]
        return _response(body, task, segments, seconds)

    def instruction(self, served: Served, task: str, body: TranscriptionBody) -> str:
        """The text beside a window: the server's, or the model's own for the task."""
        config, is_raw = self.service.config, served.prompts.is_raw
        own = config.transcription_prompt if task == "transcribe" else config.translation_prompt
        template = own or _INSTRUCTIONS[task][is_raw]
        if "{language}" in template:
            if body.language is None:
                raise ApiError(400, "language: this model's prompt needs it: en, zh", "language")
            template = template.replace("{language}", body.language)
        if body.prompt and is_raw:
            raise ApiError(400, "prompt: the base model takes its own prompts alone", "prompt")
        return f"{template} {body.prompt}".strip()

    def windows(
        self,
        served: Served,
        waveform: Float[np.ndarray, " S"],
        instruction: str,
        body: TranscriptionBody,
    ) -> list[Window]:
        """Requests for the windows of a clip; raises ApiError."""
        prompts, config = served.prompts, self.service.config
        limit = min(config.max_new_tokens, body.max_tokens or config.max_new_tokens)
        settings = SamplingBody(temperature=body.temperature, seed=body.seed)
        sampling = prompts.sampling(settings, 0, limit)
        # As the authors evaluate: transcripts repeat words where people do.
        sampling = dataclasses.replace(sampling, repetition_penalty=1.0)
        try:
            windows = window_requests(
                waveform,
                instruction,
                prompts.processor,
                prompts.model.config,
                sampling,
                raw=prompts.is_raw,
                max_seconds=config.window_seconds,
            )
        except InputError as error:
            raise ApiError.of(error) from None
        capacity = prompts.model.engine.buckets.capacity
        for request in (window.request for window in windows):
            rest = max(1, capacity - request.tokens.size)
            request.sampling = dataclasses.replace(
                request.sampling, max_new_tokens=min(limit, rest)
            )
        return windows

    async def segments(
        self, http: HTTPConnection, served: Served, windows: Sequence[Window]
    ) -> AsyncGenerator[Segment, None]:
        """Windows' texts in order. As many windows as the engine has slots are answered at a time,
        so that a long clip leaves room for others in the queue."""
        room = asyncio.Semaphore(served.runner.engine.num_slots)

        async def answer(window: Window) -> Segment:
            async with (
                room,
                self.service.answers(http, served, [window.request], is_admitted=True) as group,
            ):
                await group.finish()
            return segment_of(window, group.items[0])

        tasks = [asyncio.create_task(answer(window)) for window in windows]
        try:
            for task in tasks:
                yield await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _events(
        self,
        http: HTTPRequest,
        served: Served,
        windows: Sequence[Window],
        has_times: bool,
    ) -> AsyncGenerator[str, None]:
        """OpenAI's events: a delta for each window, and its times if they are asked for; then the
        whole."""
        text, index, num_prompt, num_generated = "", 0, 0, 0
        async with aclosing(self.segments(http, served, windows)) as segments:
            async for segment in segments:
                joined = join_texts([text, segment.text])
                yield event({"type": "transcript.text.delta", "delta": joined[len(text) :]})
                if has_times:
                    times = {"id": str(index), "start": segment.start, "end": segment.end}
                    told = {"text": segment.text, "speaker": ""}
                    yield event({"type": "transcript.text.segment", **times, **told})
                index += 1
                num_prompt += segment.answer.request.tokens.size
                num_generated += len(segment.answer.generated)
                text = joined
        usage = {
            "type": "tokens",
            "input_tokens": num_prompt,
            "output_tokens": num_generated,
            "total_tokens": num_prompt + num_generated,
        }
        yield event({"type": "transcript.text.done", "text": text, "usage": usage})


async def _read_form(http: HTTPRequest) -> tuple[JsonDict, bytes, str]:
    """Fields, and the file with its name; raises ApiError."""
    try:
        async with http.form(max_files=1, max_fields=32) as form:
            fields, content, name = JsonDict(), None, "file"
            for key, value in form.multi_items():
                key = key.removesuffix("[]")
                if isinstance(value, UploadFile):
                    if key != "file":
                        raise ApiError(400, f"{key}: is a file", key)
                    content, name = await value.read(), value.filename or "file"
                elif key in _LISTS:
                    fields.setdefault(key, []).append(value)
                elif key in fields:
                    raise ApiError(400, f"{key}: is given twice", key)
                else:
                    fields[key] = value
    except HTTPException as error:
        raise ApiError(400, str(error.detail), code="invalid_form") from None
    if content is None:
        raise ApiError(400, "file: is missing; send multipart/form-data with a file", "file")
    return fields, content, name


def _response(
    body: TranscriptionBody, task: str, segments: Sequence[Segment], seconds: float
) -> Response:
    text = join_texts([segment.text for segment in segments])
    if body.response_format == "text":
        return PlainTextResponse(text + "\n")
    if body.response_format == "srt":
        return PlainTextResponse(to_srt(segments))
    if body.response_format == "vtt":
        return PlainTextResponse(to_vtt(segments), media_type="text/vtt")
    usage = {"type": "duration", "seconds": math.ceil(seconds)}
    if body.response_format == "json":
        return JSONResponse({"text": text, "usage": usage})
    return JSONResponse(
        {
            "task": task,
            "language": body.language or "",
            "duration": seconds,
            "text": text,
            "segments": [_segment(i, s, body.temperature) for i, s in enumerate(segments)],
            "usage": usage,
        }
    )


def _segment(index: int, segment: Segment, temperature: float) -> JsonDict:
    answer = segment.answer
    logprobs = [info.logprob for info in answer.generated]
    raw = segment.text.encode()
    return {
        "id": index,
        "seek": int(segment.start * 100),
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": answer.tokens,
        "temperature": temperature,
        "avg_logprob": sum(logprobs) / max(1, len(logprobs)),
        "compression_ratio": len(raw) / max(1, len(zlib.compress(raw))),
        "no_speech_prob": 0.0,  # the model tells none; clients need the field
    }
