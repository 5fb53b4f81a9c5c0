"""From bodies to the engine's requests: clips are read, prompts tokenized, settings checked."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from qa_jax.api import LoadedModel
from qa_jax.config import JsonDict, SamplingConfig
from qa_jax.config.serve import ServeConfig
from qa_jax.data import load_audio
from qa_jax.data.chat import PLACEHOLDER, apply_chat_template
from qa_jax.data.tokenizer import AUDIO
from qa_jax.data.urls import fetch
from qa_jax.errors import InputError
from qa_jax.generate import Clip, Request
from qa_jax.serve.errors import ApiError
from qa_jax.serve.schema import SamplingBody
from qa_jax.typing import Float

_ROLES = {"developer": "system"}
_NULL_FIELDS = ("name", "refusal", "audio", "tool_calls", "function_call", "annotations")
"""Of messages: what clients send back from earlier answers, without effect."""
_PARTS = {
    "input_audio": ({"data", "format"}, "data"),
    "audio_url": ({"url"}, "url"),
}


class ClipStore:
    """Clips that requests named by uuid, for later requests of the same key."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._clips: OrderedDict[tuple[str, str], Float[np.ndarray, " S"]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str]) -> Float[np.ndarray, " S"] | None:
        with self._lock:
            if key in self._clips:
                self._clips.move_to_end(key)
            return self._clips.get(key)

    def put(self, key: tuple[str, str], clip: Float[np.ndarray, " S"]) -> None:
        with self._lock:
            old = self._clips.pop(key, None)
            self._num_bytes += clip.nbytes - (0 if old is None else old.nbytes)
            self._clips[key] = clip
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= self._clips.popitem(last=False)[1].nbytes


class PromptMaker:
    """Makes requests for one model.

    Args:
        model: whose tokenizer and settings are used.
        config: limits.
        audio_hosts: hosts that clips may be fetched from.
        is_raw: messages are the base model's raw prompts, without a chat template.
        store: clips by uuid.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: ServeConfig,
        audio_hosts: Sequence[str],
        is_raw: bool,
        store: ClipStore,
    ) -> None:
        self.model, self.config, self.is_raw = model, config, is_raw
        self.processor, self.store = model.require_processor(), store
        self._hosts = audio_hosts

    # Clips.

    def read_clip(self, part: JsonDict, where: str, owner: str = "") -> Float[np.ndarray, " S"]:
        """The waveform of an `input_audio` or `audio_url` part; raises ApiError."""
        kind = str(part.get("type") or next((k for k in _PARTS if k in part), ""))
        if kind not in _PARTS:
            raise ApiError(
                400, f"{where}: part of type {kind!r}; use text, input_audio or audio_url", where
            )
        _only(part, {"type", kind, "uuid"}, where)
        uuid, content = part.get("uuid"), part.get(kind)
        if uuid is not None and not isinstance(uuid, str):
            raise ApiError(400, f"{where}.uuid: is not text", f"{where}.uuid")
        if content is None:
            known = None if uuid is None else self.store.get((owner, uuid))
            if known is None:
                told = "no such clip is kept; send it again" if uuid else "has no clip"
                raise ApiError(400, f"{where}: {told}", where, "unknown_uuid" if uuid else None)
            return known
        where = f"{where}.{kind}"
        if not isinstance(content, dict):
            raise ApiError(400, f"{where}: is not an object", where)
        fields, key = _PARTS[kind]
        _only(content, fields, where)
        text = content.get(key)
        if not isinstance(text, str):
            raise ApiError(400, f"{where}.{key}: is not text", f"{where}.{key}")
        if kind == "input_audio" and not text.startswith("data:"):
            text = f"data:audio;base64,{text}"
        clip = self.read_file(self._fetch(text, where), where, self.processor.long_audio)
        if uuid is not None:
            self.store.put((owner, uuid), clip)
        return clip

    def _fetch(self, url: str, where: str) -> bytes:
        if not url.startswith(("data:", "https://", "http://")):
            raise ApiError(400, f"{where}: not a data: or https: URL", where, "invalid_url")
        try:
            return fetch(url, self._hosts)
        except InputError as error:
            raise ApiError(400, f"{where}: {error.cause}; {error.remedy}", where) from None

    def read_file(self, content: bytes, where: str, long_audio: str) -> Float[np.ndarray, " S"]:
        """The waveform of a file's bytes; `long_audio` as in `load_audio`. Raises ApiError."""
        try:
            return load_audio(
                content,
                name=where,
                long_audio=long_audio,
                max_seconds=self.config.max_audio_seconds,
            )
        except InputError as error:
            raise ApiError.of(error, where) from None

    # Prompts.

    def chat(self, messages: Sequence[JsonDict], owner: str = "") -> tuple[list[int], list[Clip]]:
        """Ids and clips of a conversation; raises ApiError."""
        taken, clips = list[JsonDict](), list[Float[np.ndarray, " _"]]()
        for i, message in enumerate(messages):
            taken.append(self._message(message, f"messages[{i}]", clips, owner))
        if self.is_raw:
            text = _raw_text(taken)
        else:
            try:
                text = apply_chat_template(taken, add_generation_prompt=True).text
            except InputError as error:
                raise ApiError.of(error, "messages") from None
        return self._tokenize(text, clips, "messages")

    def _message(
        self, message: JsonDict, where: str, clips: list[Float[np.ndarray, " _"]], owner: str
    ) -> JsonDict:
        """A message with the clips that it adds as arrays."""
        _only(message, {"role", "content", *_NULL_FIELDS}, where)
        for name in _NULL_FIELDS[1:]:
            if message.get(name) not in (None, []):
                raise ApiError(400, f"{where}.{name}: is not supported", f"{where}.{name}")
        role = message.get("role")
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for j, part in enumerate(content):
                at = f"{where}.content[{j}]"
                if not isinstance(part, dict):
                    raise ApiError(400, f"{at}: is not an object", at)
                if part.get("type") == "text":
                    _only(part, {"type", "text"}, at)
                    parts.append(part)
                    continue
                if len(clips) == self.config.max_clips:
                    raise ApiError(400, f"{at}: more than {len(clips)} clips", at, "too_many_clips")
                clips.append(self.read_clip(part, at, owner))
                parts.append({"type": "audio", "audio": clips[-1]})
            content = parts
        return {"role": _ROLES.get(str(role), role), "content": content}

    def raw(
        self, prompt: str | Sequence[int], clips: Sequence[Float[np.ndarray, " _"]]
    ) -> tuple[list[int], list[Clip]]:
        """Ids and clips of a raw prompt, or of ids with one placeholder for each clip."""
        if isinstance(prompt, str):
            return self._tokenize(prompt, clips, "prompt")
        ids, remaining, found = list[int](), iter(clips), list[Clip]()
        for i in prompt:
            clip = next(remaining, None) if i == self.processor.audio_token_id else None
            if clip is None:
                ids.append(i)
                continue
            # As for a text: its windows, if it is long.
            own, parts = self._tokenize(AUDIO, [clip], "audio")
            ids += own
            found += parts
        return ids, [*found, *(Clip.of(clip, self.model.config) for clip in remaining)]

    def _tokenize(
        self, text: str, waveforms: Sequence[Float[np.ndarray, " _"]], param: str
    ) -> tuple[list[int], list[Clip]]:
        try:
            ids, parts = self.processor.tokenize_clips(text, waveforms)
            return ids, [Clip.of(part, self.model.config) for part in parts]
        except InputError as error:
            raise ApiError.of(error, param) from None

    # Requests.

    def requests(
        self, prompt: tuple[list[int], list[Clip]], sampling: SamplingConfig, count: int
    ) -> list[Request]:
        """`count` requests for the same prompt, each with a seed of its own."""
        ids, clips = prompt
        decode, config = self.processor.tokenizer.decode, self.model.config
        try:
            tokens = np.array(ids, np.int64)
            return [
                Request(tokens, clips, sampling.of_row(i), config, decode) for i in range(count)
            ]
        except InputError as error:
            raise ApiError.of(error, error.source) from None

    def sampling(
        self,
        body: SamplingBody,
        num_tokens: int,
        max_tokens: int | None,
        top_logprobs: int = 0,
    ) -> SamplingConfig:
        """A body's settings over the model's own. Without `max_tokens`, an answer may fill what the
        prompt's `num_tokens` leave, up to the server's limit."""
        limit = self.config.max_new_tokens
        if max_tokens is not None and max_tokens > limit:
            raise ApiError(
                400, f"max_tokens: {max_tokens} is over the limit of {limit}", "max_tokens"
            )
        rest = self.model.engine.buckets.capacity - num_tokens
        given: JsonDict = {"max_new_tokens": max_tokens or max(1, min(limit, rest))}
        for name in (
            "temperature top_p min_p repetition_penalty presence_penalty frequency_penalty".split()
        ):
            if getattr(body, name) is not None:
                given[name] = getattr(body, name)
        if body.top_k is not None:
            given["top_k"] = max(0, body.top_k)  # -1 is vLLM's "all"
        if body.seed is not None:
            given["seed"] = body.seed % 2**32
        if body.min_tokens is not None:
            given["min_new_tokens"] = body.min_tokens
        if body.stop:
            given["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
        default = self.model.default_sampling
        given["stop_ids"] = () if body.ignore_eos else default.stop_ids
        given["stop_ids"] += tuple(body.stop_token_ids or ())
        try:
            if body.logit_bias:
                given["logit_bias"] = tuple((int(i), b) for i, b in body.logit_bias.items())
            return dataclasses.replace(default, top_logprobs=top_logprobs, **given)
        except InputError as error:
            raise ApiError.of(error, error.source) from None
        except ValueError:
            raise ApiError(400, "logit_bias: its keys are not token ids", "logit_bias") from None


def _only(given: JsonDict, known: set[str], where: str) -> None:
    unknown = sorted(set(given) - known)
    if unknown:
        at = f"{where}.{unknown[0]}"
        raise ApiError(400, f"{at}: unknown field", at, "unknown_field")


def _raw_text(messages: Sequence[JsonDict]) -> str:
    """A base model's prompt: the parts of the only message, one after the other."""
    asked = [m for m in messages if m["role"] != "system" or m["content"]]
    if len(asked) != 1 or asked[0]["role"] != "user":
        raise ApiError(
            400, "messages: the base model has no conversations; send one user message", "messages"
        )
    content = asked[0]["content"]
    if isinstance(content, str):
        return content
    texts = [PLACEHOLDER if part["type"] == "audio" else str(part["text"]) for part in content]
    if any(AUDIO in part.get("text", "") for part in content if part["type"] == "text"):
        raise ApiError(400, f"messages: text contains {AUDIO}", "messages")
    return "".join(texts)
