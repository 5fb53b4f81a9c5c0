"""JSONL manifests: one record a line, read whole and checked before any work starts.

    {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"},
                                               {"type": "text", "text": "..."}]},
                  {"role": "assistant", "content": "..."}]}
    {"audio": "a.wav", "prompt": "...", "text": "..."}

The second is the short form for pre-training: raw prompts without a template. The first may also be
spelt as ms-swift does, see `with_clips`. Paths are relative to the manifest; records without audio
are allowed; other keys are left alone.

A record with two answers to the same question, a better and a worse one, is a pair of preferences:

    {"messages": [{"role": "user", ...}], "chosen": "...", "rejected": "..."}
    {"audio": "a.wav", "prompt": "...", "chosen": "...", "rejected": "..."}

or, as ms-swift spells it, messages that end on the better answer and "rejected_response".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qa_jax.data.chat import PLACEHOLDER, Prompt, Span, render
from qa_jax.data.tokenizer import AUDIO, END_OF_TEXT
from qa_jax.errors import InputError

_SWIFT = "<audio>"
_REMEDY = 'give {"messages": [...]} or {"audio": ..., "prompt": ..., "text": ...}'


class Record(NamedTuple):
    """One manifest line.

    Attributes:
        source: "file:line", for messages.
        base: directory of the manifest, where its paths start.
        prompt: the record as spans and clips; of a pair, with the better answer.
        raw: the line itself.
        rejected: of a pair, the same with the worse answer.
    """

    source: str
    base: Path
    prompt: Prompt
    raw: Mapping[str, Any]
    rejected: Prompt | None = None

    def versions(self) -> list[Prompt]:
        """The one conversation of a record, or both of a pair, the better answer first."""
        return [self.prompt] if self.rejected is None else [self.prompt, self.rejected]


Tolerate = Callable[[InputError, str], None]
"""Told of an unusable record and where it is; returns where it may be left out, or raises."""


def read_manifest(path: str | Path, tolerate: Tolerate | None = None) -> list[Record]:
    """All records of a manifest.

    Raises InputError naming the first unusable line, unless `tolerate` lets it pass.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"not readable ({error})", "check the path") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        try:
            records.append(_record(line, source, path.parent))
        except InputError as error:
            if tolerate is None:
                raise
            tolerate(error, source)
    if not records:
        raise InputError(path, "holds no records", _REMEDY)
    return records


def _record(line: str, source: str, base: Path) -> Record:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise InputError(source, f"not JSON ({error})", "one object a line") from None
    if is_pair(raw):
        better, worse = to_pair(raw, source)
        return Record(source, base, better, raw, worse)
    return Record(source, base, to_prompt(raw, source), raw)


def holds_pairs(path: str | Path) -> bool:
    """Whether a manifest's records are pairs, by its first."""
    return read_manifest(path)[0].rejected is not None


def is_pair(raw: Any) -> bool:
    """Whether a manifest's line holds two answers."""
    return isinstance(raw, Mapping) and bool({"chosen", "rejected", "rejected_response"} & set(raw))


def to_pair(raw: Mapping[str, Any], source: str) -> tuple[Prompt, Prompt]:
    """A pair as two conversations, of which the last answers alone count as answers.

    Raises InputError naming `source` for a pair that is none.
    """
    asked = dict(raw)
    if "rejected_response" in asked:
        messages = list(asked.get("messages") or [{}])
        better, worse = messages.pop().get("content"), asked.pop("rejected_response")
        asked["messages"] = messages
    else:
        better, worse = (_answer(asked.pop(k, None)) for k in ("chosen", "rejected"))
    for name, answer in (("chosen", better), ("rejected", worse)):
        if not isinstance(answer, str) or not answer:
            raise InputError(source, f"has no {name} answer", f'give "{name}": "..."')
    if better == worse:
        raise InputError(source, "chosen and rejected are the same", "leave the record out")
    if "messages" in asked:
        turns = asked["messages"]
        last = turns[-1] if isinstance(turns, list) and turns else {}
        if not isinstance(last, Mapping) or last.get("role") != "user":
            raise InputError(
                source, "messages do not end with the user", "end them on the question"
            )
        both = [
            {**asked, "messages": [*turns, {"role": "assistant", "content": answer}]}
            for answer in (better, worse)
        ]
    else:
        both = [{**asked, "text": answer} for answer in (better, worse)]
    first, second = (_last_answer_alone(to_prompt(one, source)) for one in both)
    return first, second


def _answer(value: Any) -> Any:
    """An answer's text, which may come as a list of one message."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        return value[0].get("content")
    return value


def _last_answer_alone(prompt: Prompt) -> Prompt:
    last = max(i for i, span in enumerate(prompt.spans) if span.answer)
    spans = [Span(s.text, s.answer and i == last) for i, s in enumerate(prompt.spans)]
    return Prompt(spans, prompt.audio)


def read_mixture(
    manifests: str | Mapping[str, float], tolerate: Tolerate | None = None
) -> list[Record]:
    """The records of an epoch.

    Args:
        manifests: one path, or how often an epoch holds the records of each, at least once: with
            2.5 every record comes twice, and every second one a third time.
        tolerate: see `read_manifest`.
    """
    if isinstance(manifests, str):
        return read_manifest(manifests, tolerate)
    mixed: list[Record] = []
    for path, times in manifests.items():
        if not times >= 1:
            raise InputError(
                f"data.train {path}", f"weight {times} is under 1", "raise the others' instead"
            )
        records = read_manifest(path, tolerate)
        whole = int(times)
        extra = round((times - whole) * len(records))
        # Spread over the manifest, whose neighbours are often alike.
        some = [records[i * len(records) // extra] for i in range(extra)]
        mixed += records * whole + some
    return mixed


def to_prompt(raw: Any, source: str) -> Prompt:
    """A record's conversation or short form as spans; raises InputError naming `source`."""
    if not isinstance(raw, Mapping):
        raise InputError(source, "not a JSON object", _REMEDY)
    if "messages" in raw:
        try:
            prompt = render(with_clips(raw))
        except InputError as error:
            raise error.within(source) from None
    elif isinstance(raw.get("text"), str):
        prompt = _short_form(raw, source)
    else:
        raise InputError(source, "has neither messages nor text", _REMEDY)
    if not any(span.answer for span in prompt.spans):
        raise InputError(source, "no assistant turn to learn", "add one, or leave the record out")
    return prompt


def with_clips(raw: Mapping[str, Any]) -> Any:
    """A record's messages, with clips where ms-swift's form names them apart.

    That form is {"messages": [{"role": "user", "content": "<audio>What is heard?"}, ...], "audios":
    ["a.wav"]}: each `<audio>` stands for the next clip; clips without one come before the first
    user's text.
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
    rest = list(clips)
    placed = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        user = isinstance(message, Mapping) and message.get("role") == "user"
        if isinstance(content, str) and (content.count(_SWIFT) or (user and rest and not marks)):
            if not marks:
                content = _SWIFT * len(rest) + content
            message = {**message, "content": _parts(content, rest)}
        placed.append(message)
    return placed


def _parts(content: str, clips: list[Any]) -> list[dict[str, Any]]:
    """Text with marks as parts; takes the clips it places out of the list."""
    parts: list[dict[str, Any]] = []
    for i, text in enumerate(content.split(_SWIFT)):
        if i:
            parts.append({"type": "audio", "audio": clips.pop(0)})
        if text:
            parts.append({"type": "text", "text": text})
    return parts


def _short_form(raw: Mapping[str, Any], source: str) -> Prompt:
    audio, instruction = raw.get("audio"), raw.get("prompt", "")
    clips = [] if audio is None else audio if isinstance(audio, list) else [audio]
    if AUDIO in instruction or AUDIO in raw["text"]:
        raise InputError(source, f"text holds {AUDIO}", "clips are placed before the prompt")
    question = PLACEHOLDER * len(clips) + instruction
    return Prompt([Span(question, False), Span(raw["text"] + END_OF_TEXT, True)], clips)


def split_last_answer(record: Record) -> tuple[Prompt, str]:
    """A record as a question to be answered, and the answer it holds.

    The question ends where the last assistant turn begins.
    """
    spans = record.prompt.spans
    last = max(i for i, span in enumerate(spans) if span.answer)
    reference = spans[last].text
    for end in ("<|im_end|>", END_OF_TEXT):
        reference = reference.removesuffix(end)
    question = Prompt(list(spans[:last]), record.prompt.audio)
    if question.text.count(AUDIO) != len(question.audio):
        raise InputError(record.source, "a clip comes after the last answer", "end on an answer")
    return question, reference
