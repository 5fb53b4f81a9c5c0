"""Text endpoints: chat, completions, models, tokens, probes, metrics."""

from __future__ import annotations

import time
from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from qa_jax.config import JsonDict
from qa_jax.generate import Request
from qa_jax.serve.errors import ApiError
from qa_jax.serve.responses import Form
from qa_jax.serve.schema import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    SamplingBody,
    StreamOptions,
    TokenizeBody,
    parse_body,
    parse_json,
)
from qa_jax.serve.service import Served, Service

IGNORED = "x-ignored-fields"
"""Header of a response: the request's fields that were taken without effect."""


class Endpoints:
    """Handlers of requests.

    Args:
        service: what they share.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._started = int(time.time())

    async def chat(self, http: HTTPRequest) -> Response:
        """POST /v1/chat/completions."""
        raw = await self.service.in_thread(parse_json, await http.body())
        body, ignored = parse_body(ChatBody, raw)
        served, stream = self._begin(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs: true", "top_logprobs")
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            raise ApiError(400, "max_tokens: given with max_completion_tokens", "max_tokens")
        num_choices = self._num_choices(body)
        prompts, owner = served.prompts, http.state.owner

        def make() -> list[Request]:
            prompt = prompts.chat(body.messages, owner)
            max_tokens = body.max_completion_tokens or body.max_tokens
            num_logprobs = body.top_logprobs or 0
            sampling = prompts.sampling(body, len(prompt[0]), max_tokens, num_logprobs)
            return prompts.requests(prompt, sampling, num_choices)

        requests = await self.service.in_thread(make)
        form = self._form("chat", served, bool(body.logprobs))
        response = await self.service.respond(http, served, form, requests, 1, stream)
        return _tell_ignored(response, ignored)

    async def completions(self, http: HTTPRequest) -> Response:
        """POST /v1/completions."""
        raw = await self.service.in_thread(parse_json, await http.body())
        body, ignored = parse_body(CompletionBody, raw)
        served, stream = self._begin(body)
        texts: list[str | list[int]]
        if isinstance(body.prompt, str):
            texts = [body.prompt]
        elif body.prompt and isinstance(body.prompt[0], int):
            texts = [[i for i in body.prompt if isinstance(i, int)]]
        else:
            texts = [t for t in body.prompt if not isinstance(t, int)]
        if not texts:
            raise ApiError(400, "prompt: is empty", "prompt")
        num_choices = self._num_choices(body, len(texts))
        prompts, owner, limit = served.prompts, http.state.owner, self.service.config.max_clips
        if len(body.audio or ()) > limit:
            raise ApiError(400, f"audio: more than {limit} clips", "audio", "too_many_clips")

        def make() -> list[Request]:
            parts = enumerate(body.audio or ())
            clips = [prompts.read_clip(part, f"audio[{i}]", owner) for i, part in parts]
            requests, seeds = list[Request](), 0
            for text in texts:
                prompt = prompts.raw(text, clips)
                max_tokens = 16 if body.max_tokens is None else body.max_tokens  # OpenAI's default
                sampling = prompts.sampling(body, len(prompt[0]), max_tokens, body.logprobs or 0)
                own = sampling.of_row(seeds)
                requests += prompts.requests(prompt, own, num_choices)
                seeds += num_choices
            return requests

        requests = await self.service.in_thread(make)
        form = self._form("completion", served, body.logprobs is not None)
        response = await self.service.respond(http, served, form, requests, len(texts), stream)
        return _tell_ignored(response, ignored)

    def _begin(self, body: SamplingBody) -> tuple[Served, StreamOptions | None]:
        """The model, if it has room, and how its answer is streamed, if it is."""
        served = self.service.model(body.model)
        served.runner.check_room()
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options: needs stream: true", "stream_options")
        return served, (body.stream_options or StreamOptions()) if body.stream else None

    def _form(self, kind: Literal["chat", "completion"], served: Served, told: bool) -> Form:
        model = served.prompts.model
        tokenizer = served.prompts.processor.tokenizer
        return Form(kind, served.name, tokenizer, told, model.default_sampling.stop_ids)

    def _num_choices(self, body: SamplingBody, num_prompts: int = 1) -> int:
        limit, count = self.service.config.max_choices, body.n or 1
        if count * num_prompts > limit:
            raise ApiError(400, f"n: {count * num_prompts} answers, the limit is {limit}", "n")
        return count

    async def tokenize(self, http: HTTPRequest) -> Response:
        """POST /tokenize."""
        body, _ = parse_body(TokenizeBody, parse_json(await http.body()))
        served = self.service.model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "prompt: give it or messages", "prompt")

        def make() -> list[int]:
            if body.messages is not None:
                return served.prompts.chat(body.messages, http.state.owner)[0]
            return served.prompts.processor.tokenizer.encode(body.prompt or "")

        ids = await self.service.in_thread(make)
        found: JsonDict = {
            "count": len(ids),
            "max_model_len": served.runner.engine.buckets.capacity,
            "tokens": ids,
        }
        if body.return_token_strs:
            tokenizer = served.prompts.processor.tokenizer
            found["token_strs"] = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
        return JSONResponse(found)

    async def detokenize(self, http: HTTPRequest) -> Response:
        """POST /detokenize."""
        body, _ = parse_body(DetokenizeBody, parse_json(await http.body()))
        served = self.service.model(body.model)
        vocab = served.runner.engine.config.text.vocab_size
        if any(not 0 <= i < vocab for i in body.tokens):
            raise ApiError(400, f"tokens: ids are 0 to {vocab - 1}", "tokens")
        decode = served.prompts.processor.tokenizer.decode
        return JSONResponse({"prompt": decode(body.tokens, skip_special_tokens=False)})

    async def models(self, http: HTTPRequest) -> Response:
        """GET /v1/models and /v1/models/NAME."""
        name = http.path_params.get("name")
        if name is not None:
            return JSONResponse(self._model_card(self.service.model(name)))
        cards = [self._model_card(served) for served in self.service.models.values()]
        return JSONResponse({"object": "list", "data": cards})

    def _model_card(self, served: Served) -> JsonDict:
        return {
            "id": served.name,
            "object": "model",
            "created": self._started,
            "owned_by": "qa_jax",
            "root": served.name,
            "parent": None,
            "max_model_len": served.runner.engine.buckets.capacity,
            "permission": [],
            "input_modalities": ["text", "audio"],
        }

    async def health(self, _: HTTPRequest) -> Response:
        """GET /health: whether the process should live on."""
        failed = [s for s in self.service.models.values() if s.runner.failure is not None]
        return Response(status_code=503 if failed else 200)

    async def ready(self, _: HTTPRequest) -> Response:
        """GET /ready: whether requests are answered, without compiling."""
        is_ready = all(s.runner.is_ready for s in self.service.models.values())
        return Response(status_code=200 if is_ready else 503)

    async def metrics(self, _: HTTPRequest) -> Response:
        """GET /metrics."""
        text = generate_latest(self.service.metrics.registry)
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)


def _tell_ignored(response: Response, ignored: list[str]) -> Response:
    if ignored:
        response.headers[IGNORED] = ", ".join(sorted(ignored))
    return response
