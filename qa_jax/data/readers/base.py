"""What readers return."""

from __future__ import annotations

from typing import NamedTuple

from qa_jax.config import JsonDict
from qa_jax.errors import InputError


class Line(NamedTuple):
    """A line of a manifest.

    Attributes:
        raw: its fields, in one of the forms of `qa_jax.data.manifest`; or why it has none.
        source: "file:line", for messages.
        base: directory of the paths in it.
    """

    raw: JsonDict | InputError
    source: str
    base: str


TEXT_NAMES = ("text", "transcription", "transcript", "sentence", "normalized_text", "raw_text")
"""What datasets call a transcript, ours first."""


def from_columns(fields: JsonDict, clips: list[object]) -> JsonDict:
    """A row of a table as a manifest's line: messages with its clips, or the short form."""
    raw = {key: value for key, value in fields.items() if value is not None}
    if "messages" in raw:
        return {**raw, "audios": clips} if clips else raw
    for name in TEXT_NAMES:
        if isinstance(raw.get(name), str):
            raw["text"] = raw[name]
            break
    return {**raw, "audio": clips[0] if len(clips) == 1 else clips}
