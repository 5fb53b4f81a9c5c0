"""Bodies of requests, in OpenAI's and vLLM's form; a field that is not here is refused.

OpenAI's API reference (chat, completions, audio) and vLLM's `SamplingParams` define the fields.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qa_jax.config import JsonDict
from qa_jax.config.generation import MAX_LOGIT_BIASES, MAX_STOP_IDS, MAX_TOP_LOGPROBS
from qa_jax.errors import suggest
from qa_jax.serve.errors import ApiError

_ANY = object()
HARMLESS: dict[str, object] = {
    **dict.fromkeys(
        "user metadata store service_tier safety_identifier prompt_cache_key priority cache_salt "
        "parallel_tool_calls request_id spaces_between_special_tokens".split(),
        _ANY,
    ),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "echo": (False,),
    "best_of": (1,),
    "include_stop_str_in_output": (False,),
    "return_tokens_as_token_ids": (False,),
    "use_beam_search": (False,),
    "suffix": ("",),
    "chunking_strategy": ("auto",),
    "include": ([],),
}
"""Fields that are taken without effect, with the values that have none. Null is always taken."""

_Bias = Annotated[float, Field(ge=-100, le=100)]
_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Body = TypeVar("_Body", bound="Body")


class Body(BaseModel):
    """A body of which every field is known."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str = ""


class StreamOptions(BaseModel):
    """What a stream tells besides text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: Literal[False] = False


class ResponseFormat(BaseModel):
    """The form of an answer: text alone."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]


class SamplingBody(Body):
    """How answers are sampled: fields of `SamplingConfig` under their names in the API."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, _Bias], Field(max_length=MAX_LOGIT_BIASES)] | None = None
    seed: int | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stop_token_ids: Annotated[list[_Token], Field(max_length=MAX_STOP_IDS)] | None = None
    ignore_eos: bool = False
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None


class ChatBody(SamplingBody):
    """Of /v1/chat/completions."""

    messages: Annotated[list[JsonDict], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class CompletionBody(SamplingBody):
    """Of /v1/completions: raw prompts. `audio` is an extension: the clips of the prompts'
    placeholders, as parts of a message."""

    prompt: str | list[str] | list[_Token] | list[list[_Token]]
    audio: list[JsonDict] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class TokenizeBody(Body):
    """Of /tokenize: a prompt, or messages."""

    prompt: str | None = None
    messages: list[JsonDict] | None = None
    add_special_tokens: Literal[False] = False
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """Of /detokenize."""

    tokens: list[_Token]


class TranscriptionBody(Body):
    """The fields, besides the file, of /v1/audio/transcriptions and /v1/audio/translations."""

    model_config = ConfigDict(extra="forbid", strict=False)  # a form's values are text
    language: Annotated[str, Field(pattern="^[A-Za-z-]{2,10}$")] | None = None
    prompt: str = ""
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0
    seed: int | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    timestamp_granularities: list[Literal["segment"]] = Field(default_factory=list)
    stream: bool = False
    stream_include_usage: bool = False


def parse_json(raw: bytes) -> JsonDict:
    """A body's object; raises ApiError for anything else."""
    try:
        found = json.loads(raw, parse_constant=_no_number)
        if b"\\u" in raw:
            json.dumps(found, ensure_ascii=False).encode()  # raises for half a character
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({error})", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON's")


def parse_body(kind: type[_Body], raw: JsonDict) -> tuple[_Body, list[str]]:
    """A body, and the fields that were taken without effect; raises ApiError for a field that is
    unknown or wrong, and names it."""
    taken, ignored = dict[str, object](), list[str]()
    for name, value in raw.items():
        if name in kind.model_fields:
            if value is not None:
                taken[name] = value
        elif _is_harmless(name, value):
            ignored.append(name)
        elif name in HARMLESS:
            raise ApiError(
                400, f"{name}: {value!r:.80} is not supported", name, "unsupported_value"
            )
        else:
            remedy = suggest(name, kind.model_fields)
            raise ApiError(400, f"{name}: unknown field; {remedy}", name, "unknown_field")
    try:
        return kind.model_validate(taken), ignored
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        where = _where(found["loc"])
        raise ApiError(400, f"{where}: {found['msg']}", where, "invalid_value") from None


def _is_harmless(name: str, value: object) -> bool:
    allowed = HARMLESS.get(name)
    if value is None or allowed is _ANY:
        return True
    return isinstance(allowed, tuple) and value in allowed


def _where(path: Sequence[int | str]) -> str:
    """A field as in "messages[0].content", without the names of a union's kinds."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int"):
            text += f".{part}" if text else part
    return text
