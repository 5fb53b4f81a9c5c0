"""Lazy reading of a Hugging Face directory: each tensor, or a part of it, on request.

The safetensors library maps whole files into memory or copies whole tensors; conversion must stay
under 1.1 GB and loading onto a mesh reads columns of matrices, so parts are read here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from qa_jax.config import ModelConfig, from_hf, read_json
from qa_jax.errors import InputError
from qa_jax.hf.table import EMBED_TOKENS, LM_HEAD, TensorSpec, released_name, tensor_map
from qa_jax.paths import AnyPath, PathLike, as_path, file_size, is_remote, read_range
from qa_jax.typing import ParamPath, Shaped

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class SafetensorsDir:
    """The tensors of a Hugging Face directory, each read from disk on request.

    Names are the released ones, whichever the files use; `rename` maps the files' names. Opening
    reads headers only and raises InputError, listing every problem, for a missing or damaged shard,
    an index that disagrees with the shards, a truncated tensor, or pickled weights.
    """

    def __init__(self, directory: PathLike, rename: Callable[[str], str] = released_name) -> None:
        self.directory, self._rename = as_path(directory), rename
        self._entries: dict[str, tuple[AnyPath, int, np.dtype, tuple[int, ...]]] = {}
        problems: list[str] = []
        index = self._index()
        self.files = self._files(index)
        for file in self.files:
            try:
                self._read_header(file, problems)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                problems.append(f"{file.name}: unreadable header ({error})")
        if not problems:
            for raw_name, file_name in index.items():
                entry = self._entries.get(rename(raw_name))
                if entry is None or entry[0].name != file_name:
                    problems.append(f"{raw_name}: not in {file_name}, as the index says")
            listed = {rename(n) for n in index}
            if index:
                problems += [f"{n}: not in the index" for n in self._entries if n not in listed]
        raise_problems(self.directory, problems, "download or save the checkpoint again")
        self._open = {
            file: file.open("rb", buffering=0) for file in self.files if not is_remote(file)
        }

    def _index(self) -> dict[str, str]:
        path = self.directory / "model.safetensors.index.json"
        if not path.exists():
            return {}
        weight_map = read_json(path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(path, "has no weight_map", "download the index again")
        return weight_map

    def _files(self, index: dict[str, str]) -> list[AnyPath]:
        if index:
            names = sorted(set(map(str, index.values())))
            if outside := [name for name in names if Path(name).name != name]:
                raise InputError(
                    self.directory / "model.safetensors.index.json",
                    f"names {outside[0]!r}, which is not a file of this directory",
                    "download the index again",
                )
            return [self.directory / name for name in names]
        files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            pickled = [p.name for p in self.directory.glob("*.bin")]
            raise InputError(
                self.directory,
                f"only pickled weights ({pickled[0]}), which can run code when read"
                if pickled
                else "no .safetensors file here",
                "save the checkpoint as safetensors"
                if pickled
                else "name a checkpoint's directory",
            )
        return files

    def _read_header(self, file: AnyPath, problems: list[str]) -> None:
        size = file_size(file)
        length = int.from_bytes(read_range(file, 0, 8), "little")
        if length > size:
            raise ValueError(f"declares {length} bytes in a file of {size}")
        data = read_range(file, 0, 8 + length)
        header, found = json.loads(data[8:]), len(problems)
        start = 8 + length
        for raw_name, entry in header.items():
            if raw_name == "__metadata__":
                continue
            name = self._rename(raw_name)
            begin, end = entry["data_offsets"]
            dtype, shape = _DTYPES.get(entry["dtype"]), tuple(entry["shape"])
            if dtype is None:
                problems.append(f"{raw_name}: dtype {entry['dtype']} is not a floating-point type")
            elif end - begin != math.prod(shape) * dtype.itemsize:
                problems.append(f"{raw_name}: {end - begin} bytes do not make shape {shape}")
            elif start + end > size:
                problems.append(f"{raw_name}: truncated, {file.name} ends before it does")
            elif name in self._entries:
                problems.append(f"{raw_name}: found twice, in {file.name} too")
            else:
                self._entries[name] = file, start + begin, dtype, shape
        if len(problems) == found:
            _check_header(file, data, size)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name][3]

    def dtype(self, name: str) -> np.dtype:
        return self._entries[name][2]

    def offset(self, name: str) -> tuple[str, int]:
        """The tensor's file and its first byte there: reading in this order is fastest."""
        file, offset, _, _ = self._entries[name]
        return file.name, offset

    def read(self, name: str, index: tuple[slice, ...] = ()) -> Shaped[np.ndarray, "..."]:
        """A tensor, or the part at `index`: one slice for each of its first dimensions.

        Reads only the requested bytes of rows or of a matrix's columns. Thread-safe. Raises
        InputError if the file ends too early.
        """
        file, offset, dtype, shape = self._entries[name]
        bounds = [s.indices(n) for s, n in zip(index, shape, strict=False)]
        first, last = bounds[0][:2] if bounds else (0, shape[0] if shape else 1)
        row = math.prod(shape[1:]) * dtype.itemsize
        if len(shape) == 2 and len(bounds) == 2 and bounds[1] != (0, shape[1], 1):
            left, right = bounds[1][:2]
            out = np.empty((last - first, right - left), dtype)
            start = offset + left * dtype.itemsize
            for i, line in enumerate(out.view(np.uint8).reshape(out.shape[0], -1), start=first):
                self._fill(file, line, start + i * row)
            return out
        out = np.empty((last - first, *shape[1:]), dtype)
        self._fill(file, out.reshape(-1).view(np.uint8), offset + first * row)
        return out[(slice(None), *index[1:])]

    def _fill(self, file: AnyPath, out: np.ndarray, offset: int) -> None:
        if is_remote(file):
            data = read_range(file, offset, offset + out.size)
            if len(data) != out.size:
                raise InputError(file, "ends before its tensors do", "download it again")
            out[:] = np.frombuffer(data, np.uint8)
            return
        done = 0
        while done < out.size:
            try:
                n = os.preadv(self._open[file].fileno(), [out[done:].data], offset + done)
            except OSError as error:
                raise InputError(file, f"cannot be read ({error})", "copy it again") from error
            if not n:
                raise InputError(file, "ends before its tensors do", "download it again")
            done += n


def _check_header(file: AnyPath, data: bytes, size: int) -> None:
    """Lets the safetensors library check a header: types, overlaps, holes, the file's size.

    A file in object storage is imitated by one of its size with its header, which takes no space.
    """
    if not is_remote(file):
        with safe_open(file, framework="numpy"):
            return
    with tempfile.NamedTemporaryFile() as local:
        local.write(data)
        local.truncate(size)
        local.flush()
        with safe_open(local.name, framework="numpy"):
            return


def open_model(directory: PathLike) -> tuple[ModelConfig, SafetensorsDir]:
    """The model configuration and the tensors of a Hugging Face directory, checked to match.

    If config.json ties the head but the files contain a different head, the files are used: only a
    model whose head was not tied can have written them.
    """
    path = as_path(directory) / "config.json"
    config = from_hf(read_json(path), path)
    source = SafetensorsDir(directory)
    both = config.text.tie_word_embeddings and {LM_HEAD, EMBED_TOKENS} <= set(source)
    if both and not _equal(source, tensor_map(config)[EMBED_TOKENS]):
        warnings.warn(
            f"{path} ties the head, the files contain another one: using that", stacklevel=2
        )
        text = dataclasses.replace(config.text, tie_word_embeddings=False)
        config = dataclasses.replace(config, text=text)
    check(source, tensor_map(config))
    return config, source


def _equal(source: SafetensorsDir, table: TensorSpec) -> bool:
    """Whether the head equals the embedding table."""
    if source.shape(LM_HEAD) != source.shape(EMBED_TOKENS):
        return False
    return all(
        np.array_equal(source.read(LM_HEAD, (rows,)), source.read(EMBED_TOKENS, (rows,)))
        for rows, _ in table.blocks()
    )


def check(source: SafetensorsDir, tensors: dict[str, TensorSpec]) -> None:
    """Raises InputError listing every missing, extra and misshapen tensor."""
    problems = [
        f"{name}: missing"
        for name, tensor in tensors.items()
        if name not in source and not tensor.is_tied_copy
    ]
    for name in source:
        if name not in tensors:
            problems.append(f"{name}: not a tensor of this model")
        elif source.shape(name) != tensors[name].hf_shape:
            expected = tensors[name].hf_shape
            problems.append(f"{name}: shape {source.shape(name)}, expected {expected}")
    stacks: dict[ParamPath, np.dtype] = {}
    for name, tensor in tensors.items():
        if name in source and not tensor.is_tied_copy:
            first = stacks.setdefault(tensor.path, source.dtype(name))
            if source.dtype(name) != first:
                problems.append(f"{name}: {source.dtype(name)}, other layers are {first}")
    raise_problems(source.directory, problems, "compare config.json with the files")


def raise_problems(source: object, problems: list[str], remedy: str) -> None:
    """Raises one InputError for all problems, each on its own line if there are several."""
    if len(problems) == 1:
        raise InputError(source, problems[0], remedy)
    if problems:
        lines = "".join(f"\n  {p}" for p in problems)
        raise InputError(source, f"{len(problems)} problems:{lines}\n", remedy)
