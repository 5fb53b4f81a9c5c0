"""Building the index of a manifest, in parts that outlive a stop."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qa_jax.config import JsonDict, read_json
from qa_jax.data.audio_shards import is_in_shard
from qa_jax.data.examples import measure
from qa_jax.data.index import (
    COLUMNS,
    ERRORS,
    META,
    Columns,
    index_path,
    index_settings,
    line_hash,
)
from qa_jax.data.manifest import Record, parse_record
from qa_jax.data.processor import Processor
from qa_jax.data.readers.jsonl import parse_line
from qa_jax.data.stored import split_segment
from qa_jax.errors import InputError
from qa_jax.paths import is_remote, join, parent, write_whole

_CHUNK_LINES = 20_000
_PARTS = "parts"


class IndexSummary(NamedTuple):
    """What an index holds.

    Attributes:
        num_records: usable ones.
        errors: of the others, "file:line: cause; remedy".
        num_measured: records that were measured now; the others were known.
        path: the index.
    """

    num_records: int
    errors: list[str]
    num_measured: int
    path: str


def build_index(
    manifest: str | Path,
    processor: Processor,
    *,
    long_audio: str = "error",
    prompt: str = "",
    num_threads: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> IndexSummary:
    """Measures all records of a JSONL manifest and writes its index.

    Parts are kept as they are finished, so that it continues where it was stopped; and what an
    older index knows of lines and files that are the same is not measured again.

    Args:
        manifest: a local file.
        processor: with the tokenizer of the training.
        long_audio: as `data.long_audio`.
        prompt: as `data.prompt`.
        num_threads: threads that read clips' headers.
        progress: called with (bytes done, bytes in all).
    """
    if is_remote(manifest) or not Path(manifest).is_file():
        raise InputError(manifest, "no local file", "index it locally, and copy the index with it")
    directory = Path(index_path(manifest))
    size, done, num_measured = Path(manifest).stat().st_size, 0, 0
    builder: _Builder | None = None
    for number, lines in enumerate(_chunks(manifest)):
        if builder is None:
            first = _first_record(lines, str(manifest), prompt)
            settings = index_settings(processor, long_audio, prompt, len(first.completions()))
            builder = _Builder(str(manifest), directory, processor, settings, num_threads)
        num_measured += builder.add_part(number, lines)
        done = lines[-1].offset + len(lines[-1].text)
        if progress:
            progress(min(done + 1, size), size)
    if builder is None:
        raise InputError(manifest, "contains no records")
    return builder.finish(size)._replace(num_measured=num_measured)


class _ManifestLine(NamedTuple):
    number: int
    offset: int
    text: bytes


def _chunks(manifest: str | Path) -> Iterator[list[_ManifestLine]]:
    chunk, offset = list[_ManifestLine](), 0
    with open(manifest, "rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.rstrip(b"\n")
            if text.strip():
                chunk.append(_ManifestLine(number, offset, text))
            offset += len(line)
            if len(chunk) == _CHUNK_LINES:
                yield chunk
                chunk = []
    if chunk:
        yield chunk


def _first_record(lines: Iterable[_ManifestLine], manifest: str, prompt: str) -> Record:
    """A usable record, whose form all others must have."""
    error: InputError | None = None
    for line in lines:
        try:
            source = f"{manifest}:{line.number}"
            parsed = parse_line(line.text.decode(errors="replace"), source, parent(manifest))
            return parse_record(parsed, prompt)
        except InputError as unusable:
            error = error or unusable
    raise error or InputError(manifest, "contains no records")


class _Builder:
    """Writes the parts of an index, then the index."""

    def __init__(
        self,
        manifest: str,
        directory: Path,
        processor: Processor,
        settings: JsonDict,
        num_threads: int,
    ) -> None:
        self.manifest, self.directory, self.settings = manifest, directory, settings
        self._processor, self._base = processor, parent(manifest)
        self._pool = ThreadPoolExecutor(max(1, num_threads))
        self._known = _Known(directory, settings)
        self._parts: list[Path] = []

    def add_part(self, number: int, lines: list[_ManifestLine]) -> int:
        """Measures a chunk of lines, or takes what is known; returns how many were measured."""
        found = list(self._pool.map(self._measure, lines))
        rows = [row for row in found if isinstance(row, _Row)]
        columns = {
            name: np.array([getattr(row, name) for row in rows], dtype)
            for name, dtype in COLUMNS.items()
            if name not in ("num_samples", "num_clips")
        }
        columns["num_clips"] = np.array([len(row.num_samples) for row in rows], np.int16)
        columns["num_samples"] = np.array([n for row in rows for n in row.num_samples], np.int32)
        errors = [
            (line.number, error.source, error.cause, error.remedy)
            for line, error in zip(lines, found, strict=True)
            if isinstance(error, InputError)
        ]
        path = self.directory / _PARTS / f"{number:06d}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            meta = json.dumps({"settings": self.settings, "errors": errors})
            np.savez(file, meta=np.array(meta), **columns)  # type: ignore[arg-type]
        partial.replace(path)
        self._parts.append(path)
        return sum(row.is_new for row in rows)

    def _measure(self, line: _ManifestLine) -> _Row | InputError:
        source = f"{self.manifest}:{line.number}"
        prompt, long_audio = self.settings["data.prompt"], self.settings["data.long_audio"]
        try:
            text = line.text.decode()
        except UnicodeDecodeError as error:
            return InputError(source, f"not UTF-8 ({error})", "write it again")
        try:
            record = parse_record(parse_line(text, source, self._base), prompt)
            hashes = line_hash(line.text), line_hash(_stamps(record))
            known = self._known.find(*hashes)
            if known is not None:
                return _Row(line.offset, len(line.text), line.number, *hashes, *known, False)
            completions = self.settings["number of completions"]
            measured = measure(record, self._processor, long_audio, completions)
        except InputError as error:
            return error.within(source)
        return _Row(
            line.offset,
            len(line.text),
            line.number,
            *hashes,
            measured.num_samples,
            measured.text_tokens,
            True,
        )

    def finish(self, manifest_bytes: int) -> IndexSummary:
        """Joins the parts, deletes them, and writes last what makes the index whole."""
        self._pool.shutdown()
        parts = [np.load(path) for path in self._parts]
        (self.directory / META).unlink(missing_ok=True)
        digest = hashlib.sha256()
        for name in COLUMNS:
            column = np.concatenate([part[name] for part in parts])
            np.save(self.directory / f"{name}.npy", column)
            if name in ("line_hash", "num_samples", "text_tokens"):
                digest.update(column.tobytes())
        errors = [error for part in parts for error in json.loads(str(part["meta"]))["errors"]]
        (self.directory / ERRORS).write_text("".join(json.dumps(e) + "\n" for e in errors))
        num_records = sum(len(part["line"]) for part in parts)
        meta = {
            "settings": self.settings,
            "manifest_bytes": manifest_bytes,
            "records": num_records,
            "unusable": len(errors),
            "digest": digest.hexdigest()[:16],
        }
        write_whole(self.directory / META, json.dumps(meta, indent=1) + "\n")
        shutil.rmtree(self.directory / _PARTS)
        texts = [
            str(InputError(source, cause, remedy).within(f"{self.manifest}:{number}"))
            for number, source, cause, remedy in errors
        ]
        return IndexSummary(num_records, texts, 0, str(self.directory))


class _Row(NamedTuple):
    offset: int
    length: int
    line: int
    line_hash: int
    files_hash: int
    num_samples: tuple[int, ...]
    text_tokens: int
    is_new: bool


class _Known:
    """Records that an older index, or a part of one that was stopped, has measured."""

    def __init__(self, directory: Path, settings: JsonDict) -> None:
        tables = [*_old_index(directory, settings), *_old_parts(directory, settings)]
        self._hashes = np.concatenate([np.zeros(0, np.uint64), *[t["line_hash"] for t in tables]])
        self._order = np.argsort(self._hashes, kind="stable")
        self._hashes = self._hashes[self._order]
        none = np.zeros(0, np.int32)
        self._files, self._tokens, self._clips, self._samples = (
            np.concatenate([none.astype(COLUMNS[name]), *[t[name] for t in tables]])
            for name in ("files_hash", "text_tokens", "num_clips", "num_samples")
        )
        self._first = np.concatenate([[0], np.cumsum(self._clips, dtype=np.int64)])

    def find(self, line_hash: int, files_hash: int) -> tuple[tuple[int, ...], int] | None:
        """Samples and text tokens of a record whose line and files are the same."""
        at = int(np.searchsorted(self._hashes, np.uint64(line_hash)))
        if at == len(self._hashes) or int(self._hashes[at]) != line_hash:
            return None
        row = int(self._order[at])
        if int(self._files[row]) != files_hash:
            return None
        samples = self._samples[self._first[row] : self._first[row + 1]]
        return tuple(samples.tolist()), int(self._tokens[row])


def _old_index(directory: Path, settings: JsonDict) -> Iterator[Columns]:
    if (directory / META).is_file() and read_json(directory / META)["settings"] == settings:
        yield {name: np.load(directory / f"{name}.npy") for name in COLUMNS}


def _old_parts(directory: Path, settings: JsonDict) -> Iterator[Columns]:
    for path in sorted((directory / _PARTS).glob("*.npz")):
        with np.load(path) as part:
            if json.loads(str(part["meta"]))["settings"] == settings:
                yield {name: part[name] for name in COLUMNS}


def _stamps(record: Record) -> bytes:
    """Sizes and times of the local files of a record's clips."""
    found = []
    for clip in record.prompt.audio:
        if isinstance(clip, str) and not is_in_shard(clip):
            path = join(record.base, split_segment(clip)[0])
            if not is_remote(path):
                try:
                    stat = os.stat(path)
                except OSError:
                    continue
                found.append((stat.st_size, stat.st_mtime_ns))
    return json.dumps(found).encode()
