"""JSONL manifests: one record a line, read whole and checked before any work starts.

    {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"},
                                               {"type": "text", "text": "..."}]},
                  {"role": "assistant", "content": "..."}]}
    {"audio": "a.wav", "prompt": "...", "text": "..."}

The second is the short form for pre-training: raw prompts without a template. Paths are relative
to the manifest; records without audio are allowed; other keys are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qa_jax.data.chat import PLACEHOLDER, Prompt, Span, render
from qa_jax.data.tokenizer import AUDIO, END_OF_TEXT
from qa_jax.errors import InputError

_REMEDY = 'give {"messages": [...]} or {"audio": ..., "prompt": ..., "text": ...}'


class Record(NamedTuple):
    """One manifest line.

    Attributes:
        source: "file:line", for messages.
        base: directory of the manifest, where its paths start.
        prompt: the record as spans and clips.
        raw: the line itself.
    """

    source: str
    base: Path
    prompt: Prompt
    raw: Mapping[str, Any]


def read_manifest(path: str | Path) -> list[Record]:
    """All records of a manifest; raises InputError naming the first unusable line."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"not readable ({error})", "check the path") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            source = f"{path}:{number}"
            try:
                raw = json.loads(line)
            except ValueError as error:
                raise InputError(source, f"not JSON ({error})", "one object a line") from None
            records.append(Record(source, path.parent, to_prompt(raw, source), raw))
    if not records:
        raise InputError(path, "holds no records", _REMEDY)
    return records


def to_prompt(raw: Any, source: str) -> Prompt:
    """A record's conversation or short form as spans; raises InputError naming `source`."""
    if not isinstance(raw, Mapping):
        raise InputError(source, "not a JSON object", _REMEDY)
    if "messages" in raw:
        try:
            prompt = render(raw["messages"])
        except InputError as error:
            raise error.within(source) from None
    elif isinstance(raw.get("text"), str):
        prompt = _short_form(raw, source)
    else:
        raise InputError(source, "has neither messages nor text", _REMEDY)
    if not any(span.answer for span in prompt.spans):
        raise InputError(source, "no assistant turn to learn", "add one, or leave the record out")
    return prompt


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
