"""Both directions over the one table in qa_jax.hf; types and bits stay as they are."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from qa_jax import checkpoint, hf
from qa_jax.config import to_hf as config_to_hf
from qa_jax.errors import InputError
from qa_jax.model import flatten, nest


def to_jax(source: str | Path, dest: str | Path) -> None:
    """Converts a Hugging Face directory into a qa_jax checkpoint.

    Everything is checked before anything is written, and the checkpoint is made beside `dest` and
    renamed at the end. Raises InputError listing every tensor that does not fit.
    """
    config, tensors = hf.open_model(source)
    with _beside(dest) as partial:
        params = nest(hf.load_params(tensors, config))
        checkpoint.create(partial, config, source)
        checkpoint.save_params(partial, jax.tree.map(jax.numpy.asarray, params))


def to_hf(source: str | Path, dest: str | Path, shard_size: str = "5GB") -> None:
    """Converts a qa_jax checkpoint into a Hugging Face directory in the released layout.

    Args:
        source: the checkpoint; of a training run, the latest step.
        dest: the new directory.
        shard_size: the largest file, for example "5GB"; a tensor is never split.
    """
    limit = parse_size(shard_size)
    config = checkpoint.read_config(source)
    params = flatten(checkpoint.load_params(source, config))
    tensors = hf.tensor_map(config)
    with _beside(dest) as partial:
        shards = list(_shards(tensors, params, limit))
        names, total = {}, 0
        for i, shard in enumerate(shards, start=1):
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            file = "model.safetensors" if len(shards) == 1 else file
            arrays = {t.hf: _hf_array(t, params) for t in shard}
            save_file(arrays, partial / file, metadata={"format": "pt"})
            names.update(dict.fromkeys(arrays, file))
            total += sum(a.nbytes for a in arrays.values())
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
            _write_json(partial / "model.safetensors.index.json", index)
        dtypes = {str(p.dtype) for p in params.values()}
        raw = config_to_hf(config)
        raw["torch_dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
        _write_json(partial / "config.json", raw)
        checkpoint.copy_text_files(source, partial)


def _hf_array(tensor: hf.Tensor, params: dict[tuple[str, ...], jax.Array]) -> np.ndarray:
    ours = params[tensor.path]
    return tensor.to_hf(np.asarray(ours if tensor.layer is None else ours[tensor.layer]))


def _shards(
    tensors: dict[str, hf.Tensor], params: dict[tuple[str, ...], jax.Array], limit: int
) -> Iterator[list[hf.Tensor]]:
    """Tensors in the table's order, cut into files of at most `limit` bytes."""
    shard: list[hf.Tensor] = []
    size = 0
    for tensor in tensors.values():
        bytes_ = int(np.prod(tensor.shape)) * params[tensor.path].dtype.itemsize
        if shard and size + bytes_ > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += bytes_
    yield shard


class _beside:
    """A directory beside `dest` that takes its name when the block ends well."""

    def __init__(self, dest: str | Path) -> None:
        self.dest = Path(dest).absolute()
        self.partial = self.dest.with_name(f".{self.dest.name}.partial")

    def __enter__(self) -> Path:
        if self.dest.exists() and (not self.dest.is_dir() or any(self.dest.iterdir())):
            raise InputError(self.dest, "exists and is not empty", "name a new directory")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        if self.dest.exists():
            self.dest.rmdir()
        os.replace(self.partial, self.dest)


def parse_size(text: str) -> int:
    """Bytes in "5GB", "300MB" or "1000"."""
    match = re.fullmatch(r"(\d+)([KMG]?B)?", text.strip())
    if not match:
        raise InputError(text, "not a size", 'write for example "5GB" or "300MB"')
    return int(match[1]) * {None: 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
