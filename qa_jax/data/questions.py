"""Prompts to be answered: of a manifest, or of audio files."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from qa_jax.config import JsonDict
from qa_jax.data.audio import AudioSource
from qa_jax.data.chat import PLACEHOLDER, Prompt, Span, apply_chat_template
from qa_jax.data.manifest import (
    from_swift_format,
    is_pair,
    read_lines,
    short_form_prompt,
    split_last_answer,
    to_prompt,
)
from qa_jax.data.stored import StoredClip
from qa_jax.data.urls import is_url
from qa_jax.errors import InputError
from qa_jax.paths import PathLike, join, parent

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".au", ".npy")


class Question(NamedTuple):
    """A prompt to be answered.

    Attributes:
        row: the fields of its row in an output file, before its answer's; they identify it.
        prompt: as text and clips.
        base: directory to which paths of clips are relative.
        instruction: of a prompt that is one clip and this text, as `instruction_prompt` makes it;
            its clip may be answered window by window.
        is_raw: whether that prompt has no chat template.
    """

    row: JsonDict
    prompt: Prompt
    base: str = ""
    instruction: str | None = None
    is_raw: bool = False


def instruction_prompt(clips: Sequence[AudioSource], instruction: str, raw: bool = False) -> Prompt:
    """Clips and a text, or voice chat if it is empty; `raw` is without a chat template, as for the
    base model."""
    if raw:
        return Prompt([Span(PLACEHOLDER * len(clips) + instruction, False)], list(clips))
    content: list[JsonDict] = [{"type": "audio", "audio": clip} for clip in clips]
    if instruction:
        content.append({"type": "text", "text": instruction})
    messages = [{"role": "user", "content": content}]
    return apply_chat_template(messages, add_generation_prompt=True)


def read_questions(path: PathLike) -> list[Question]:
    """The prompts of a manifest whose records may lack an answer.

    The last assistant turn, or the short form's text, is the row's "reference". Raises InputError
    naming the first record that cannot be used.
    """
    questions = []
    for raw, source in read_lines(path):
        prompt, reference = _prompt_and_reference(raw, source)
        if not prompt.text:
            raise InputError(source, "has no prompt to answer", "add messages, audio or a prompt")
        row: JsonDict = {"source": source, "prompt": prompt.text}
        if names := clip_names(prompt.audio, parent(path)):
            row["audio"] = names
        if reference is not None:
            row["reference"] = reference
        questions.append(Question(row, prompt, parent(path)))
    return questions


def clip_names(clips: Sequence[AudioSource], base: PathLike = "") -> list[str]:
    """Where clips are, as far as they have a name: not those whose bytes are in the prompt."""
    names = []
    for clip in clips:
        if isinstance(clip, StoredClip):
            names.append(str(clip))
        elif isinstance(clip, str) and not clip.startswith("data:"):
            names.append(clip if is_url(clip) else join(base, clip))
    return names


def _prompt_and_reference(raw: JsonDict, source: str) -> tuple[Prompt, str | None]:
    if is_pair(raw):
        raise InputError(source, "is a preference pair", "give records with one answer, or none")
    keys = set(raw)
    if {"audio", "prompt"} & keys and not {"messages", "text"} & keys:
        prompt, clips = short_form_prompt(raw, source)
        return Prompt([Span(prompt, False)], clips), None
    if "messages" in keys:
        messages = raw["messages"]
        last = messages[-1] if isinstance(messages, Sequence) and messages else None
        if isinstance(last, Mapping) and last.get("role") == "user":
            try:
                return apply_chat_template(from_swift_format(raw), add_generation_prompt=True), None
            except InputError as error:
                raise error.within(source) from None
    return split_last_answer(to_prompt(raw, source), source)


def audio_questions(paths: Sequence[str], instruction: str, raw: bool = False) -> list[Question]:
    """The same instruction for each of many clips.

    Args:
        paths: audio files, directories that are searched, patterns such as "calls/*.wav", and
            manifests: .jsonl files whose records have an "audio" path.
        instruction: the text beside each clip.
        raw: without a chat template, as for the base model.

    Raises:
        InputError: for a path with nothing in it, or a manifest's record without "audio".
    """
    questions = []
    for path in paths:
        for clip, base in find_clips(path):
            prompt = instruction_prompt([clip], instruction, raw)
            questions.append(Question({"audio": clip}, prompt, base, instruction, raw))
    return questions


def find_clips(path: str) -> list[tuple[AudioSource, str]]:
    """The clips of an audio file, a directory, a pattern or a manifest, each with the directory to
    which it is relative; raises InputError as `audio_questions`."""
    if path.endswith(".jsonl"):
        found = []
        for raw, source in read_lines(path):
            clip = raw.get("audio")
            if not isinstance(clip, str):
                raise InputError(source, "has no audio path", 'give {"audio": "a.wav"}')
            found.append((clip, parent(path)))
        return found
    if Path(path).is_dir():
        files = sorted(p for p in Path(path).rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
        if not files:
            raise InputError(path, "contains no audio files", f"{', '.join(AUDIO_SUFFIXES)} are")
        return [(str(file), "") for file in files]
    if glob.has_magic(path) and not Path(path).exists():
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise InputError(path, "matches no file", "check the pattern")
        return [(file, "") for file in matches]
    return [(path, "")]
