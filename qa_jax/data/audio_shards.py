"""ArrayRecord shards of audio clips, which network storage reads far faster than many files.

A clip in a shard has a name like a file's, "clips-00003.array_record#17,36000": its record there
and its samples at 16 kHz, so that the manifest of sharded clips is a manifest like any other.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from qa_jax.errors import InputError
from qa_jax.paths import PathLike, is_remote, join

if TYPE_CHECKING:
    from grain.sources import ArrayRecordDataSource

_NAME = re.compile(r"(?P<file>.+\.array_record)#(?P<index>\d+),(?P<samples>\d+)")


def is_in_shard(clip: object) -> bool:
    """Whether this is the name of a clip in a shard."""
    return isinstance(clip, str) and _NAME.fullmatch(clip) is not None


def shard_num_samples(clip: str) -> int:
    """A clip's samples at 16 kHz, read from its name."""
    return int(_match(clip)["samples"])


def read_shard_clip(clip: str, base: PathLike) -> bytes:
    """The bytes of a clip's audio file; raises InputError for a missing shard or record."""
    match = _match(clip)
    path = join(base, match["file"])
    # One in object storage is looked for when it is opened: each look is a request.
    if not is_remote(path) and not Path(path).is_file():
        raise InputError(path, "no such shard", "keep the sharded manifest and its shards together")
    try:
        return _reader(path)[int(match["index"])]
    except (IndexError, OSError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        source = f"{path}#{match['index']}"
        raise InputError(source, f"no such record ({text})", "shard the manifest again") from None


def _match(clip: str) -> re.Match[str]:
    match = _NAME.fullmatch(clip)
    assert match is not None
    return match


@functools.lru_cache(maxsize=64)
def _reader(path: str) -> ArrayRecordDataSource:
    from grain.sources import ArrayRecordDataSource

    return ArrayRecordDataSource([path])
