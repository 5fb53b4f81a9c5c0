"""The index of a manifest: what planning needs of every record, measured once.

`qa-jax data index` writes MANIFEST.index/, a column a file in NumPy's format, which training maps
into memory: the start of a run then opens no clip and parses no record. A record is read from the
manifest when it is used, and must be what was measured.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np

from qa_jax.config import DataConfig, JsonDict, read_json
from qa_jax.data.manifest import OnError, Record, parse_record
from qa_jax.data.processor import Processor
from qa_jax.data.readers.jsonl import parse_line
from qa_jax.data.tables import Table
from qa_jax.errors import InputError
from qa_jax.paths import (
    AnyPath,
    as_path,
    file_size,
    is_remote,
    parent,
    read_bytes,
    read_range,
)

_VERSION = 1
COLUMNS = {
    "offset": np.int64,  # of the record's line in the manifest, in bytes
    "length": np.int32,  # of the line, in bytes
    "line": np.int32,  # its number, from 1
    "line_hash": np.uint64,
    "files_hash": np.uint64,  # of its clips' sizes and times, by which a changed file is noticed
    "num_clips": np.int16,
    "text_tokens": np.int32,
    "num_samples": np.int32,  # of each clip: as many entries as there are clips
}
META, ERRORS = "meta.json", "errors.jsonl"
_REMEDY = "run again: qa-jax data index MANIFEST, or delete the index"
Columns = dict[str, np.ndarray]


def index_path(manifest: str | Path) -> str:
    """The directory of a manifest's index."""
    return f"{manifest}.index"


def has_index(manifest: str | Path) -> bool:
    """Whether a manifest has a whole index."""
    name = str(manifest)
    if name.startswith("hf://") or name.endswith(".tar"):
        return False
    return (as_path(index_path(name)) / META).exists()


class IndexedTable(Table):
    """A manifest through its index."""

    def __init__(self, manifest: str, columns: Columns, prompt: str, digest: str) -> None:
        super().__init__(columns["num_clips"], columns["num_samples"], columns["text_tokens"])
        self._manifest, self._columns, self._prompt = manifest, columns, prompt
        self._base, self._digest = parent(manifest), digest
        self._file = None if is_remote(manifest) else os.open(manifest, os.O_RDONLY)

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        return self._digest

    def record(self, row: int) -> Record:
        columns = self._columns
        start, length = int(columns["offset"][row]), int(columns["length"][row])
        source = f"{self._manifest}:{columns['line'][row]}"
        if self._file is None:
            line = read_range(self._manifest, start, start + length)
        else:
            line = os.pread(self._file, length, start)
        if line_hash(line) != int(columns["line_hash"][row]):
            raise InputError(source, "has changed since it was indexed", _REMEDY)
        return parse_record(parse_line(line.decode(), source, self._base), self._prompt)


def open_index(
    manifest: str, config: DataConfig, processor: Processor, num_completions: int, on_error: OnError
) -> IndexedTable:
    """The table of a manifest that has an index.

    Raises:
        InputError: if the manifest, the tokenizer or a setting is not that of the index.
    """
    directory = as_path(index_path(manifest))
    meta = read_json(directory / META)
    wanted = index_settings(processor, config.long_audio, config.prompt, num_completions)
    for name, value in wanted.items():
        if meta["settings"].get(name) != value:
            raise InputError(directory, f"was made with another {name}", _REMEDY)
    if meta["manifest_bytes"] != file_size(as_path(manifest)):
        raise InputError(directory, f"{manifest} has changed since", _REMEDY)
    for line in (directory / ERRORS).read_text().splitlines():
        number, source, cause, remedy = json.loads(line)
        name = f"{manifest}:{number}"
        on_error(InputError(source or name, cause, remedy).within(name), name)
    columns = {name: _open_column(directory / f"{name}.npy") for name in COLUMNS}
    return IndexedTable(manifest, columns, config.prompt, meta["digest"])


def _open_column(path: AnyPath) -> np.ndarray:
    try:
        if is_remote(path):
            return np.load(io.BytesIO(read_bytes(path)))
        return np.load(str(path), mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(path, f"not readable ({error})", _REMEDY) from None


def index_settings(
    processor: Processor, long_audio: str, prompt: str, num_completions: int
) -> JsonDict:
    """What measured lengths depend on."""
    return {
        "version": _VERSION,
        "tokenizer": processor.fingerprint,
        "data.long_audio": long_audio,
        "data.prompt": prompt,
        "number of completions": num_completions,
    }


def line_hash(data: bytes) -> int:
    """The hash of a line, and of other bytes, in an index."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
