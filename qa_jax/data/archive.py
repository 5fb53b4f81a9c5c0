"""Many clips in few files: ArrayRecord shards, which networks' disks read far faster.

A clip in a shard is named like a file, "clips-00003.array_record#17,36000": its record there and
its samples at 16 kHz, so that a packed manifest is a manifest like any other.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qa_jax.errors import InputError

_NAME = re.compile(r"(?P<file>.+\.array_record)#(?P<index>\d+),(?P<samples>\d+)")


def in_archive(clip: Any) -> bool:
    """Whether this names a clip in a shard."""
    return isinstance(clip, str) and _NAME.fullmatch(clip) is not None


def archived_samples(clip: str) -> int:
    """A clip's samples at 16 kHz, as its name tells them."""
    match = _NAME.fullmatch(clip)
    assert match is not None
    return int(match["samples"])


def read_clip(clip: str, base: str | Path) -> bytes:
    """The bytes of a clip's sound file; raises InputError where shard or record are not there."""
    match = _NAME.fullmatch(clip)
    assert match is not None
    path = Path(base) / match["file"]
    if not path.is_file():
        raise InputError(path, "no such shard", "keep packed manifest and shards together")
    try:
        return _reader(str(path))[int(match["index"])]
    except (IndexError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        source = f"{path}#{match['index']}"
        raise InputError(source, f"no such record ({text})", "pack again") from None


@functools.lru_cache(maxsize=64)
def _reader(path: str) -> Any:
    from grain.sources import ArrayRecordDataSource

    return ArrayRecordDataSource([path])


def pack(
    manifest: str | Path,
    directory: str | Path,
    shard_bytes: int = 2**30,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Copies a manifest's clips into shards, and writes the manifest that names them there.

    Clips keep their files' bytes. Everything is checked first, so that no broken record is packed.

    Args:
        manifest: to be packed; relative paths start from it.
        directory: new or empty; gets manifest.jsonl and the shards.
        shard_bytes: a shard is closed when it holds so much.
        progress: told (records done, records in all).

    Returns:
        Clips and shards written.

    Raises:
        InputError: naming the first record that cannot be used.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    from qa_jax.data.audio import clip_samples
    from qa_jax.data.manifest import read_manifest

    records = read_manifest(manifest)
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(directory, "exists and is not empty", "name a new directory")
    for record in records:
        for clip in record.prompt.audio:
            try:
                clip_samples(clip, record.base)
            except InputError as error:
                raise error.within(record.source) from None
    directory.mkdir(parents=True, exist_ok=True)
    rows, clips, shards = [], 0, 0
    writer, size, index = None, 0, 0
    for done, record in enumerate(records, start=1):
        names = {}
        for clip in record.prompt.audio:
            if writer is None or size >= shard_bytes:
                if writer is not None:
                    writer.close()
                file = f"clips-{shards:05}.array_record"
                # Groups of one: any record can then be read without its neighbours.
                writer = ArrayRecordWriter(str(directory / file), "group_size:1")
                shards, size, index = shards + 1, 0, 0
            data = (record.base / str(clip)).read_bytes()
            writer.write(data)
            names[clip] = f"{file}#{index},{clip_samples(clip, record.base)}"
            size, index, clips = size + len(data), index + 1, clips + 1
        rows.append(json.dumps(_renamed(record.raw, names)) + "\n")
        if progress:
            progress(done, len(records))
    if writer is not None:
        writer.close()
    # Last: where there is a manifest, its shards are whole.
    (directory / "manifest.jsonl").write_text("".join(rows))
    return clips, shards


def _renamed(value: Any, names: dict[str, str], key: str = "") -> Any:
    """A record with its clips' new names, wherever its form keeps them."""
    if isinstance(value, dict):
        return {k: _renamed(v, names, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v, names, key) for v in value]
    if isinstance(value, str) and key in ("audio", "audio_url", "audios"):
        return names.get(value, value)
    return value
