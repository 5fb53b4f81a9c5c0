"""Safetensors files written in parts: preallocated with their headers, then out of order.

The safetensors library writes whole files from memory, which a conversion within 1.1 GB cannot.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert_weights.job import write_json
from qa_jax.config import JsonDict
from qa_jax.errors import InputError
from qa_jax.typing import Shaped

_TYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class Entry(NamedTuple):
    """Shape and dtype of a tensor to be written."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Shards:
    """A model's files, in the order of `entries`, each with at most `limit` bytes of tensors."""

    def __init__(self, directory: Path, entries: dict[str, Entry], limit: int) -> None:
        self.directory, self.entries = directory, entries
        self.size = sum(e.size for e in entries.values())
        names = list(_split(entries, limit))
        self.files: dict[str, list[str]] = {}
        for i, shard in enumerate(names, start=1):
            file = f"model-{i:05}-of-{len(names):05}.safetensors"
            self.files["model.safetensors" if len(names) == 1 else file] = shard
        self._headers: dict[str, bytes] = {}
        self._offsets: dict[str, tuple[str, int]] = {}
        for file, shard in self.files.items():
            self._lay_out(file, shard)

    def _lay_out(self, file: str, shard: list[str]) -> None:
        header: JsonDict = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in shard:
            shape, dtype = self.entries[name]
            begin, end = end, end + self.entries[name].size
            offsets = [begin, end]
            header[name] = {"dtype": _TYPES[dtype.name], "shape": shape, "data_offsets": offsets}
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)  # aligns the tensors
        self._headers[file] = len(raw).to_bytes(8, "little") + raw
        for name in shard:
            start = len(self._headers[file]) + header[name]["data_offsets"][0]
            self._offsets[name] = file, start

    def create(self) -> None:
        """Writes the headers; the files have their full size, filled with zeros."""
        for file, shard in self.files.items():
            with (self.directory / file).open("wb") as stream:
                stream.write(self._headers[file])
                stream.truncate(stream.tell() + sum(self.entries[n].size for n in shard))

    def write(self, name: str, blocks: Iterator[Shaped[np.ndarray, "..."]]) -> None:
        """Writes a tensor from its consecutive blocks. Thread-safe."""
        file, offset = self._offsets[name]
        with (self.directory / file).open("r+b", buffering=0) as stream:
            for block in blocks:
                data = block.reshape(-1).view(np.uint8).data
                done = 0
                while done < len(data):
                    done += os.pwrite(stream.fileno(), data[done:], offset + done)
                offset += done

    def finish(self) -> None:
        """Flushes the files to disk, and writes the index if there are several."""
        for file in self.files:
            with (self.directory / file).open("rb") as stream:
                os.fsync(stream.fileno())
        if len(self.files) > 1:
            weight_map = {n: self._offsets[n][0] for n in sorted(self._offsets)}
            index = {"metadata": {"total_size": self.size}, "weight_map": weight_map}
            write_json(self.directory / "model.safetensors.index.json", index)


def _split(entries: dict[str, Entry], limit: int) -> Iterator[list[str]]:
    shard: list[str] = []
    total = 0
    for name, entry in entries.items():
        if shard and total + entry.size > limit:
            yield shard
            shard, total = [], 0
        shard.append(name)
        total += entry.size
    yield shard


def parse_size(text: str) -> int:
    """Bytes in "5GB", "300MB" or "1000"."""
    match = re.fullmatch(r"(\d+)([KMG]?B)?", text.strip())
    if not match:
        raise InputError(text, "not a size", 'write for example "5GB" or "300MB"')
    return int(match[1]) * {None: 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]
