"""Messages to prompts: Qwen2-Audio's chat template, character for character as in transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from qa_jax.data.audio import AudioSource
from qa_jax.data.tokenizer import AUDIO, AUDIO_BOS, AUDIO_EOS, IM_END, IM_START
from qa_jax.errors import InputError

PLACEHOLDER = f"{AUDIO_BOS}{AUDIO}{AUDIO_EOS}"
DEFAULT_SYSTEM = "You are a helpful assistant."
_LOSS_KEYS = ("loss", "weight")
ROLES = ("system", "user", "assistant")
Message = Mapping[str, Any]
Conversation: TypeAlias = Any
"""A sequence of messages. Typed as open because it is user input, checked at run time."""


class Span(NamedTuple):
    """A part of a prompt.

    Attributes:
        text: as the model reads it.
        is_target: whether it is a training target, the assistant's text.
        weight: of a target's tokens in the loss.
    """

    text: str
    is_target: bool
    weight: float = 1.0


class Prompt(NamedTuple):
    """A conversation as text, and its clips in the order of their placeholders."""

    spans: list[Span]
    audio: list[AudioSource]

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)


def apply_chat_template(messages: Conversation, add_generation_prompt: bool = False) -> Prompt:
    """Formats a conversation as ChatML.

    A user turn with audio alone is voice chat, one with text is audio analysis; there is no other
    switch. Clips are numbered through the conversation. Without a system message the default one is
    inserted. Targets are the assistant's contents, each with the `<|im_end|>` that ends it.

    Args:
        messages: {"role": ..., "content": text or a list of parts}; a part is {"type": "text",
            "text": ...} or {"type": "audio", "audio": ...} (or "audio_url"), where the clip is
            anything `load_audio` accepts, with "sampling_rate" beside it for bare samples. Clips
            may have OpenAI's and vLLM's forms, too: {"input_audio": {"data": BASE64}} and
            {"audio_url": {"url": ...}}. An assistant's message may have "loss" (ms-swift) or
            "weight" (OpenAI): false or true, or the weight of its tokens in the loss.
        add_generation_prompt: whether to open the assistant's next turn.

    Raises:
        InputError: for a message or part of another form.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InputError("messages", "not a list of messages", "give at least one")
    spans: list[Span] = []
    clips: list[AudioSource] = []
    for i, message in enumerate(messages):
        source = f"message {i + 1}"
        if not isinstance(message, Mapping) or "content" not in message:
            raise InputError(source, "has no content", 'give {"role": ..., "content": ...}')
        role = message.get("role")
        if role not in ROLES:
            raise InputError(source, f"unknown role {role!r}", f"use {', '.join(ROLES)}")
        if i == 0 and role != "system":
            spans.append(Span(f"{IM_START}system\n{DEFAULT_SYSTEM}{IM_END}\n", False))
        content, new_clips = _content(message["content"], len(clips), source)
        clips += new_clips
        spans.append(Span(f"{IM_START}{role}\n", False))
        if role != "assistant" and any(message.get(key) for key in _LOSS_KEYS):
            raise InputError(source, f"has a loss, but is the {role}'s", "train on the assistant")
        if role == "assistant":
            weight = _loss_weight(message, source)
            spans += [Span(content + IM_END, True, weight), Span("\n", False)]
        else:
            spans.append(Span(f"{content}{IM_END}\n", False))
    if add_generation_prompt:
        spans.append(Span(f"{IM_START}assistant\n", False))
    return Prompt(spans, clips)


def _loss_weight(message: Message, source: str) -> float:
    given = [message[key] for key in _LOSS_KEYS if message.get(key) is not None]
    if not given:
        return 1.0
    weight = given[0]
    if len(given) > 1 or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise InputError(
            source, f"loss is {', '.join(map(repr, given))}", "give false, true, or one weight"
        )
    return float(weight)


def _content(content: object, num_clips_before: int, source: str) -> tuple[str, list[AudioSource]]:
    if isinstance(content, str):
        if AUDIO in content:
            raise InputError(
                source, f"text contains {AUDIO}", 'give clips as parts: {"type": "audio", ...}'
            )
        return content, []
    if not isinstance(content, Sequence):
        raise InputError(source, "content is neither text nor a list of parts")
    text = ""
    clips: list[AudioSource] = []
    for part in content:
        if not isinstance(part, Mapping):
            raise InputError(source, f"part {part!r} is not an object", 'use {"type": "text", ...}')
        key = next((k for k in ("audio", "audio_url", "input_audio") if k in part), None)
        if part.get("type") == "audio" or key:
            clip = part[key] if key else None
            if key != "audio" and isinstance(clip, Mapping):
                data = clip.get("data")
                clip = clip.get("url") if data is None else f"data:audio;base64,{data}"
            if clip is None:
                raise InputError(source, "an audio part without audio", 'add "audio": PATH')
            clips.append((clip, part["sampling_rate"]) if "sampling_rate" in part else clip)
            text += f"Audio {num_clips_before + len(clips)}: {PLACEHOLDER}\n"
        elif "text" in part:
            if not isinstance(part["text"], str):
                raise InputError(source, f"text is {part['text']!r}", 'give "text": "..."')
            text += _text(part["text"], source)
        else:
            raise InputError(source, f"part of type {part.get('type')!r}", "use text or audio")
    return text, clips


def _text(text: object, source: str) -> str:
    if not isinstance(text, str):
        raise InputError(source, f"text is {text!r}", 'give "text": "..."')
    return text
