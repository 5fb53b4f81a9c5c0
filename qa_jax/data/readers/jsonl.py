"""JSON lines: manifests of our own form, ms-swift's, OpenAI's, and NeMo's."""

from __future__ import annotations

import json
from collections.abc import Iterator

from qa_jax.config import JsonDict
from qa_jax.data.readers.base import Line
from qa_jax.data.stored import segment_name
from qa_jax.errors import InputError
from qa_jax.paths import PathLike, parent, read_bytes


def read_jsonl(path: PathLike) -> Iterator[Line]:
    """The lines of a file with one JSON object each."""
    try:
        # Not splitlines: JSON strings may contain U+2028 and other line separators.
        lines = read_bytes(path).decode().split("\n")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(path, f"not readable ({error})", "check the path") from None
    base = parent(path)
    for i, line in enumerate(lines, start=1):
        if line.strip():
            yield parse_line(line, f"{path}:{i}", base)


def parse_line(line: str, source: str, base: str) -> Line:
    """A line of a manifest in the directory `base`."""
    return Line(_parse(line, source), source, base)


def _parse(line: str, source: str) -> JsonDict | InputError:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InputError(source, f"not JSON ({error})", "one object a line")
    if not isinstance(raw, dict):
        return InputError(source, "not a JSON object", "one object a line")
    try:
        return with_segment(from_nemo(raw))
    except InputError as error:
        return error.within(source)


def from_nemo(raw: JsonDict) -> JsonDict:
    """A line of NeMo's manifests, which name a clip "audio_filepath", as the short form.

    Its "duration" describes the file; only with an "offset" does it choose a part.
    """
    if not isinstance(raw.get("audio_filepath"), str) or "messages" in raw:
        return raw
    rest = {k: v for k, v in raw.items() if k not in ("audio_filepath", "duration")}
    named = {"audio": raw["audio_filepath"], **rest}
    if raw.get("offset") is not None and "duration" in raw:
        named["duration"] = raw["duration"]
    return named


def with_segment(raw: JsonDict) -> JsonDict:
    """The short form's "offset" and "duration", in seconds, as a part of its clip's name."""
    audio, offset, duration = raw.get("audio"), raw.get("offset"), raw.get("duration")
    if not isinstance(audio, str) or (offset is None and duration is None):
        return raw
    start = 0.0 if offset is None else offset
    for name, value in (("offset", start), ("duration", duration)):
        is_time = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        if not is_time and value is not None:
            raise InputError(name, f"is {value!r}", "give seconds")
    rest = {k: v for k, v in raw.items() if k not in ("offset", "duration")}
    return {**rest, "audio": segment_name(audio, start, duration)}
