"""Clips that are a part of something: of a larger file, or of a dataset's row.

A part of an audio file has a name like a file's, "call.wav#t=12.5,17" (a media fragment): from
12.5 to 17 seconds. Nothing before or after it is decoded.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import NamedTuple

_SEGMENT = re.compile(r"(?P<file>.+)#t=(?P<start>\d+(\.\d+)?)(,(?P<end>\d+(\.\d+)?))?")


class Segment(NamedTuple):
    """A part of a file in seconds; the whole of it by default."""

    start: float = 0.0
    end: float | None = None


WHOLE = Segment()


class StoredClip(ABC):
    """An audio file inside a dataset's file; `str` of it is its name in messages."""

    @abstractmethod
    def read(self) -> bytes:
        """The audio file's bytes; raises InputError if they cannot be read."""

    @abstractmethod
    def __str__(self) -> str: ...


def segment_name(path: str, start: float, duration: float | None = None) -> str:
    """The name of a file's part, in seconds; to the file's end without a duration."""
    end = "" if duration is None else f",{start + duration:.6f}".rstrip("0").rstrip(".")
    return f"{path}#t={f'{start:.6f}'.rstrip('0').rstrip('.')}{end}"


def split_segment(name: str) -> tuple[str, Segment]:
    """The file of a name, and the part of it that is meant."""
    match = _SEGMENT.fullmatch(name)
    if match is None:
        return name, WHOLE
    return match["file"], Segment(
        float(match["start"]), float(match["end"]) if match["end"] else None
    )
