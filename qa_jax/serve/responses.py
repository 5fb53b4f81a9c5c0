"""Bodies of responses, and chunks of streams, in OpenAI's and vLLM's form."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Literal, NamedTuple

from qa_jax.config import JsonDict
from qa_jax.data import Tokenizer
from qa_jax.generate import Answer, TokenInfo

DONE = "data: [DONE]\n\n"


def event(body: JsonDict) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def usage(answers: Sequence[Answer], num_prompts: int) -> JsonDict:
    """Tokens of prompts, each of which is counted once, and of answers."""
    each = len(answers) // num_prompts
    prompts = answers[::each]
    prompt_tokens = sum(a.request.tokens.size for a in prompts)
    completion_tokens = sum(len(a.generated) for a in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(a.num_cached_tokens for a in prompts),
            "audio_tokens": sum(c.num_tokens for a in prompts for c in a.request.clips),
        },
    }


class Part(NamedTuple):
    """What an answer has grown by, after `offset` characters."""

    offset: int
    text: str
    tokens: list[TokenInfo]


class Growth:
    """Parts of an answer, each told once."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._num_characters = self._num_tokens = 0
        self._is_told = False

    def take(self) -> Part:
        """What is new."""
        text, tokens = self.answer.text, self.answer.generated[self._num_tokens :]
        part = Part(self._num_characters, text[self._num_characters :], tokens)
        self._num_characters, self._num_tokens = len(text), self._num_tokens + len(tokens)
        return part

    def ends(self) -> bool:
        """Whether the answer is finished; true once."""
        if self._is_told or self.answer.finish_reason is None:
            return False
        self._is_told = True
        return True


class Form:
    """The bodies of one request's response.

    Args:
        kind: which endpoint's.
        model: its name.
        tokenizer: tells tokens' texts.
        has_logprobs: whether tokens' log-probabilities are told.
        usual_stops: ids that end every answer.
    """

    def __init__(
        self,
        kind: Literal["chat", "completion"],
        model: str,
        tokenizer: Tokenizer,
        has_logprobs: bool,
        usual_stops: Sequence[int],
    ) -> None:
        self.kind, self._tokenizer = kind, tokenizer
        self._has_logprobs, self._usual_stops = has_logprobs, usual_stops
        self.id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        self._head = {"id": self.id, "created": int(time.time()), "model": model}

    def whole(self, answers: Sequence[Answer], num_prompts: int) -> JsonDict:
        """The body of a response that is no stream."""
        choices = []
        for index, answer in enumerate(answers):
            content: JsonDict = {"text": answer.text}
            if self.kind == "chat":
                message = {"role": "assistant", "content": answer.text, "refusal": None}
                content = {"message": message}
            logprobs = self._logprobs(answer.generated, 0)
            choices.append({"index": index, **content, "logprobs": logprobs, **self._end(answer)})
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        told = usage(answers, num_prompts)
        return {**self._head, "object": name, "choices": choices, "usage": told}

    def chunk(self, choices: Sequence[JsonDict], told: JsonDict | None = None) -> str:
        """An event of a stream."""
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        body = {**self._head, "object": name, "choices": list(choices)}
        return event(body if told is None else {**body, "usage": told})

    def first(self, index: int) -> JsonDict:
        """The role, with which a choice begins."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, index: int, part: Part) -> JsonDict:
        """A choice's new text."""
        content: JsonDict = {"text": part.text}
        if self.kind == "chat":
            content = {"delta": {"content": part.text}}
        logprobs = self._logprobs(part.tokens, part.offset)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": None}

    def last(self, index: int, answer: Answer) -> JsonDict:
        """How a choice ended."""
        content: JsonDict = {"delta": {}} if self.kind == "chat" else {"text": ""}
        return {"index": index, **content, "logprobs": None, **self._end(answer)}

    def _logprobs(self, tokens: Sequence[TokenInfo], offset: int) -> JsonDict | None:
        if not self._has_logprobs:
            return None
        if self.kind == "chat":
            return {"content": [self._chat_logprob(info) for info in tokens], "refusal": None}
        texts = [self._text(info.token) for info in tokens]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [info.logprob for info in tokens],
            "top_logprobs": [{self._text(i): p for i, p in info.top} for info in tokens],
            "text_offset": offsets,
        }

    def _chat_logprob(self, info: TokenInfo) -> JsonDict:
        top = [self._token(i, p) for i, p in info.top]
        return {**self._token(info.token, info.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> JsonDict:
        raw = self._tokenizer.token_bytes(token)
        return {"token": self._text(token), "logprob": logprob, "bytes": list(raw)}

    def _text(self, token: int) -> str:
        return self._tokenizer.token_bytes(token).decode("utf-8", "replace")

    def _end(self, answer: Answer) -> JsonDict:
        """finish_reason, and vLLM's stop_reason: the stop text or id that the request named."""
        stop: str | int | None = answer.stopped_by
        if answer.finish_reason == "stop" and stop is None and answer.generated:
            last = answer.generated[-1].token
            stop = None if last in self._usual_stops else last
        return {"finish_reason": answer.finish_reason, "stop_reason": stop}
