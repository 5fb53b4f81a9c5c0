"""Manifests: one record a line, read and checked as a whole before any work starts.

The lines are those of a JSONL file, or what `qa_jax.data.readers` makes of other datasets.

    {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"},
                                               {"type": "text", "text": "..."}]},
                  {"role": "assistant", "content": "..."}]}
    {"audio": "a.wav", "prompt": "...", "text": "..."}

The second is the short form for pre-training: raw prompts without a template; "offset" and
"duration" in seconds choose a part of its clip. The first may also be in ms-swift's format, see
`from_swift_format`. Paths are relative to the manifest; records without
audio are allowed; other keys are ignored. A message of the assistant's with "loss": false, or with
a weight, counts so in the loss; without, 1.

A record with a chosen and a rejected completion of the same prompt is a preference pair:

    {"messages": [{"role": "user", ...}], "chosen": "...", "rejected": "..."}
    {"audio": "a.wav", "prompt": "...", "chosen": "...", "rejected": "..."}

or, in ms-swift's format, messages that end with the chosen completion and "rejected_response".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from qa_jax.config import JsonDict
from qa_jax.data.audio import AudioSource
from qa_jax.data.chat import PLACEHOLDER, Conversation, Prompt, Span, apply_chat_template
from qa_jax.data.readers import Line, read_dataset
from qa_jax.data.tokenizer import AUDIO, END_OF_TEXT
from qa_jax.errors import InputError
from qa_jax.paths import PathLike

_SWIFT = "<audio>"
_REMEDY = 'give {"messages": [...]} or {"audio": ..., "prompt": ..., "text": ...}'


class Record(NamedTuple):
    """One manifest line.

    Attributes:
        source: "file:line", for messages.
        base: directory to which its paths are relative.
        prompt: the record as spans and clips; of a pair, with the chosen completion.
        raw: the line as JSON.
        rejected: of a pair, the same with the rejected completion.
    """

    source: str
    base: str
    prompt: Prompt
    raw: Mapping[str, Any]
    rejected: Prompt | None = None

    def completions(self) -> list[Prompt]:
        """The conversation of a record, or both of a pair, the chosen one first."""
        return [self.prompt] if self.rejected is None else [self.prompt, self.rejected]


OnError = Callable[[InputError, str], None]
"""Called with an unusable record's error and source; returns to skip the record, or raises."""


def read_manifest(
    path: PathLike, on_error: OnError | None = None, prompt: str = ""
) -> list[Record]:
    """All records of a manifest, or of another dataset that `read_dataset` reads.

    Args:
        path: of the manifest.
        on_error: see `OnError`; by default the first unusable line raises InputError naming it.
        prompt: of records in the short form that have none.
    """
    records = []
    for line in read_dataset(path):
        try:
            records.append(parse_record(line, prompt))
        except InputError as error:
            if on_error is None:
                raise
            on_error(error, line.source)
    if not records:
        raise InputError(path, "contains no records", _REMEDY)
    return records


def read_lines(path: PathLike) -> list[tuple[JsonDict, str]]:
    """The lines of a manifest as JSON, each with its "file:line"; raises InputError as
    `read_manifest`."""
    lines = [(_fields(line), line.source) for line in read_dataset(path)]
    if not lines:
        raise InputError(path, "contains no records", _REMEDY)
    return lines


def _fields(line: Line) -> JsonDict:
    if isinstance(line.raw, InputError):
        raise line.raw
    return line.raw


def parse_record(line: Line, prompt: str = "") -> Record:
    """A line's record; raises InputError if it is none. `prompt` as in `read_manifest`."""
    raw, source, base = _fields(line), line.source, line.base
    if prompt and "messages" not in raw:
        raw = {"prompt": prompt, **raw}
    if is_pair(raw):
        chosen, rejected = to_pair(raw, source)
        return Record(source, base, chosen, raw, rejected)
    return Record(source, base, to_prompt(raw, source), raw)


def contains_pairs(path: PathLike) -> bool:
    """Whether a manifest's first record is a preference pair."""
    return read_manifest(path)[0].rejected is not None


def is_pair(raw: object) -> bool:
    """Whether a manifest's line has two completions."""
    return isinstance(raw, Mapping) and bool({"chosen", "rejected", "rejected_response"} & set(raw))


def to_pair(raw: Mapping[str, Any], source: str) -> tuple[Prompt, Prompt]:
    """A pair as two conversations, of which the last assistant turns alone are targets.

    Raises InputError naming `source` for a pair that cannot be used.
    """
    prompt = dict(raw)
    if "rejected_response" in prompt:
        messages = list(prompt.get("messages") or [{}])
        chosen, rejected = messages.pop().get("content"), prompt.pop("rejected_response")
        prompt["messages"] = messages
    else:
        chosen, rejected = (_completion_text(prompt.pop(k, None)) for k in ("chosen", "rejected"))
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(text, str) or not text:
            raise InputError(source, f"has no {name} completion", f'give "{name}": "..."')
    if chosen == rejected:
        raise InputError(source, "chosen and rejected are the same", "remove the record")
    if "messages" in prompt:
        turns = prompt["messages"]
        last = turns[-1] if isinstance(turns, list) and turns else {}
        if not isinstance(last, Mapping) or last.get("role") != "user":
            raise InputError(
                source, "messages do not end with the user", "end them with the user's turn"
            )
        both = [
            {**prompt, "messages": [*turns, {"role": "assistant", "content": text}]}
            for text in (chosen, rejected)
        ]
    else:
        both = [{**prompt, "text": text} for text in (chosen, rejected)]
    first, second = (_last_target_only(to_prompt(one, source)) for one in both)
    return first, second


def _completion_text(value: object) -> object:
    """A completion's text, which may be given as a list of one message."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        return value[0].get("content")
    return value


def _last_target_only(prompt: Prompt) -> Prompt:
    last = max(i for i, span in enumerate(prompt.spans) if span.is_target)
    spans = [Span(s.text, s.is_target and i == last) for i, s in enumerate(prompt.spans)]
    return Prompt(spans, prompt.audio)


def to_prompt(raw: object, source: str) -> Prompt:
    """A record's conversation or short form as spans; raises InputError naming `source`."""
    if not isinstance(raw, Mapping):
        raise InputError(source, "not a JSON object", _REMEDY)
    if "messages" in raw:
        try:
            prompt = apply_chat_template(from_swift_format(raw))
        except InputError as error:
            raise error.within(source) from None
    elif isinstance(raw.get("text"), str):
        prompt = _short_form(raw, source)
    else:
        raise InputError(source, "has neither messages nor text", _REMEDY)
    if not any(span.is_target and span.weight for span in prompt.spans):
        raise InputError(source, "no assistant turn to train on", "add one, or remove the record")
    return prompt


def from_swift_format(raw: Mapping[str, Any]) -> Conversation:
    """A record's messages, with the clips of ms-swift's format as parts.

    The format is {"messages": [{"role": "user", "content": "<audio>What is heard?"}, ...],
    "audios": ["a.wav"]}: each `<audio>` is the next clip; clips without a placeholder are put
    before the first user's text.
    """
    if "audios" not in raw:
        return raw["messages"]
    clips, messages = raw["audios"], raw["messages"]
    if isinstance(clips, str):
        clips = [clips]
    if not isinstance(clips, list) or not isinstance(messages, list):
        raise InputError("audios", "not a list of paths", 'give "audios": ["a.wav"]')
    texts = [m.get("content") if isinstance(m, Mapping) else None for m in messages]
    marks = sum(text.count(_SWIFT) for text in texts if isinstance(text, str))
    if marks not in (0, len(clips)):
        raise InputError(
            "audios", f"{len(clips)} clips for {marks} {_SWIFT}", f"write one {_SWIFT} for each"
        )
    remaining = list(clips)
    placed = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        user = isinstance(message, Mapping) and message.get("role") == "user"
        if isinstance(content, str) and (
            content.count(_SWIFT) or (user and remaining and not marks)
        ):
            if not marks:
                content = _SWIFT * len(remaining) + content
            message = {**message, "content": _parts(content, remaining)}
        placed.append(message)
    return placed


def _parts(content: str, clips: list[Any]) -> list[dict[str, Any]]:
    """Text with placeholders as parts; removes the clips that it uses from the list."""
    parts: list[dict[str, Any]] = []
    for i, text in enumerate(content.split(_SWIFT)):
        if i:
            parts.append({"type": "audio", "audio": clips.pop(0)})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def short_form_prompt(raw: Mapping[str, Any], source: str) -> tuple[str, list[AudioSource]]:
    """The raw prompt and the clips of the short form; raises InputError naming `source`."""
    audio, instruction = raw.get("audio"), raw.get("prompt", "")
    clips = [] if audio is None else audio if isinstance(audio, list) else [audio]
    if not isinstance(instruction, str):
        raise InputError(source, f"prompt is {instruction!r}", 'give "prompt": "..." or no prompt')
    if AUDIO in instruction or AUDIO in raw.get("text", ""):
        raise InputError(source, f"text contains {AUDIO}", "clips are inserted before the prompt")
    return PLACEHOLDER * len(clips) + instruction, clips


def _short_form(raw: Mapping[str, Any], source: str) -> Prompt:
    prompt, clips = short_form_prompt(raw, source)
    return Prompt([Span(prompt, False), Span(raw["text"] + END_OF_TEXT, True)], clips)


def split_last_answer(prompt: Prompt, source: str) -> tuple[Prompt, str]:
    """A record's prompt up to its last assistant turn, and the text of that turn.

    Raises InputError naming `source` for a clip after that turn's beginning.
    """
    spans = prompt.spans
    last = max(i for i, span in enumerate(spans) if span.is_target)
    reference = spans[last].text
    for end in ("<|im_end|>", END_OF_TEXT):
        reference = reference.removesuffix(end)
    before = Prompt(list(spans[:last]), prompt.audio)
    if before.text.count(AUDIO) != len(prompt.audio):
        raise InputError(
            source, "a clip comes after the last assistant turn", "end with the assistant"
        )
    return before, reference
