"""WebDataset: .tar shards, in which files of one name and several extensions are a sample.

A sample has an audio file, and its text in .txt, or fields of a manifest's line in .json.
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qa_jax.config import JsonDict
from qa_jax.data.readers.base import Line, from_columns
from qa_jax.data.stored import StoredClip
from qa_jax.errors import InputError
from qa_jax.paths import is_remote

AUDIO_EXTENSIONS = ("wav", "flac", "mp3", "ogg", "opus")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class Member(NamedTuple):
    """A file in a shard: where its bytes are."""

    shard: str
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise InputError(f"{self.shard}/{self.name}", "is cut off", "copy the shard again")
        return data


class TarClip(StoredClip):
    """A clip in a shard."""

    def __init__(self, member: Member) -> None:
        self.member = member

    def read(self) -> bytes:
        try:
            return self.member.read()
        except OSError as error:
            raise InputError(str(self), f"not readable ({error})", "check the shard") from None

    def __str__(self) -> str:
        return f"{self.member.shard}/{self.member.name}"


def read_webdataset(pattern: str) -> Iterator[Line]:
    """The samples of shards, "NAME.tar:N" each, the N-th of its shard."""
    for shard in find_shards(pattern):
        for i, members in enumerate(_samples(shard), start=1):
            source = f"{shard}:{i}"
            try:
                raw: JsonDict | InputError = _raw(members)
            except InputError as error:
                raw = error.within(source)
            yield Line(raw, source, "")


def find_shards(pattern: str) -> list[str]:
    """Shards by a pattern with `*` or `{000..009}`; raises InputError naming one that is not
    there."""
    if is_remote(pattern):
        raise InputError(pattern, "shards in object storage", "copy them, or qa-jax data shard")
    match = _RANGE.search(pattern)
    if match is not None:
        first, last = match.groups()
        numbers = range(int(first), int(last) + 1)
        expanded = (
            f"{pattern[: match.start()]}{n:0{len(first)}d}{pattern[match.end() :]}" for n in numbers
        )
        return [shard for one in expanded for shard in find_shards(one)]
    found = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    if not found or not all(Path(shard).is_file() for shard in found):
        raise InputError(pattern, "no such shard", "check the path")
    return found


def _samples(shard: str) -> Iterator[dict[str, Member]]:
    """Files by extension of each sample: neighbours whose names agree up to the first dot."""
    sample: dict[str, Member] = {}
    name = None
    try:
        with tarfile.open(shard) as tar:
            for entry in tar:
                if not entry.isfile():
                    continue
                directory, _, file = entry.name.rpartition("/")
                stem, _, extension = file.partition(".")
                if sample and name != (directory, stem):
                    yield sample
                    sample = {}
                name = directory, stem
                sample[extension.lower()] = Member(shard, entry.name, entry.offset_data, entry.size)
    except (tarfile.TarError, OSError) as error:
        raise InputError(shard, f"not readable as a tar file ({error})", "copy it again") from None
    if sample:
        yield sample


def _raw(members: dict[str, Member]) -> JsonDict:
    fields: JsonDict = {}
    if "json" in members:
        try:
            fields = json.loads(members["json"].read())
        except ValueError as error:
            raise InputError(members["json"].name, f"not JSON ({error})") from None
        if not isinstance(fields, dict):
            raise InputError(members["json"].name, "not a JSON object")
    if "txt" in members:
        fields["text"] = members["txt"].read().decode(errors="replace").strip()
    clips: list[object] = [
        TarClip(member)
        for extension, member in sorted(members.items())
        if extension.rpartition(".")[2] in AUDIO_EXTENSIONS
    ]
    return from_columns(fields, clips)
