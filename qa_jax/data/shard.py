"""`qa-jax data shard`: a manifest's clips copied into ArrayRecord shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qa_jax.data.audio import clip_file, clip_num_samples
from qa_jax.data.manifest import Record, read_manifest
from qa_jax.data.stored import StoredClip
from qa_jax.errors import InputError


def shard(
    manifest: str | Path,
    directory: str | Path,
    shard_bytes: int = 2**30,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Copies a manifest's clips into shards, and writes the manifest that names them there.

    Clips keep their files' bytes; parts of files become FLAC files. All records are checked before
    anything is written.

    Args:
        manifest: relative paths in it start from its directory; or another dataset that
            `qa_jax.data.readers` reads.
        directory: new or empty; gets manifest.jsonl and the shards.
        shard_bytes: size from which a shard is closed.
        progress: called with (records done, records in all).

    Returns:
        Numbers of clips and shards written.

    Raises:
        InputError: naming the first record that cannot be used.
    """
    records = read_manifest(manifest)
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(directory, "exists and is not empty", "name a new directory")
    for record in records:
        for clip in record.prompt.audio:
            try:
                clip_num_samples(clip, record.base)
            except InputError as error:
                raise error.within(record.source) from None
    directory.mkdir(parents=True, exist_ok=True)
    writer = _ShardWriter(directory, shard_bytes)
    rows = []
    for done, record in enumerate(records, start=1):
        rows.append(json.dumps(_renamed(record.raw, writer.add_clips(record))) + "\n")
        if progress:
            progress(done, len(records))
    writer.close()
    # Written last: if the manifest exists, its shards are complete.
    (directory / "manifest.jsonl").write_text("".join(rows))
    return writer.num_clips, writer.num_shards


class _ShardWriter:
    """Writes clips to shards of about `shard_bytes`."""

    def __init__(self, directory: Path, shard_bytes: int) -> None:
        self.directory, self.shard_bytes = directory, shard_bytes
        self.num_clips = self.num_shards = 0
        self._writer: Any = None  # array_record has no types
        self._size = self._index = 0

    def add_clips(self, record: Record) -> dict[str, str]:
        """Writes a record's clips; returns their new names."""
        names = {}
        for clip in record.prompt.audio:
            if self._writer is None or self._size >= self.shard_bytes:
                self._open_next()
            data = clip_file(clip, record.base)
            self._writer.write(data)
            num_samples = clip_num_samples(clip, record.base)
            names[str(clip)] = f"{self._file}#{self._index},{num_samples}"
            self._size += len(data)
            self._index += 1
            self.num_clips += 1
        return names

    def _open_next(self) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        self.close()
        self._file = f"clips-{self.num_shards:05}.array_record"
        # Groups of one: any record can be read without its neighbours.
        self._writer = ArrayRecordWriter(str(self.directory / self._file), "group_size:1")
        self.num_shards += 1
        self._size = self._index = 0

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _renamed(value: Any, names: dict[str, str], key: str = "") -> Any:
    """A record with its clips' new names, in every field that can name a clip."""
    if isinstance(value, dict):
        return {k: _renamed(v, names, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v, names, key) for v in value]
    if isinstance(value, str | StoredClip) and key in ("audio", "audio_url", "audios"):
        return names.get(str(value), value)
    return value
