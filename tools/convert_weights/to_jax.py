"""Hugging Face's safetensors -> a qa_jax checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax

from convert_weights.hub import check_downloads, local
from convert_weights.weights import HuggingFace
from convert_weights.work import Checksum, Progress, Work, compare, recorded, refuse_existing
from qa_jax import checkpoint, hf, stored
from qa_jax.model import nest


def to_jax(
    source: str | Path,
    dest: str | Path,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Converts a Hugging Face directory, or a model of the hub, into a qa_jax checkpoint.

    Everything is checked before anything is written. A few tensors are held at a time, whatever
    the model's size; interrupted, the same call goes on where it stopped.

    Args:
        source: a directory, or a hub id as "Qwen/Qwen2-Audio-7B-Instruct".
        dest: the new checkpoint.
        dtype: "bfloat16" or "float32"; None keeps the files' types, bit for bit.
        progress: told of bytes read.

    Returns:
        The checksum of all tensors as they are stored.

    Raises:
        InputError: listing every tensor that does not fit, or naming what cannot be read or
            written.
    """
    refuse_existing(dest)
    weights = HuggingFace(local(source))
    check_downloads(weights.files.files)
    tensors = {n: t for n, t in weights.tensors.items() if not t.copy_of_tied}
    shapes, chunks = _layout(tensors, weights, dtype)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes.values())
    expected = recorded(weights.directory)
    with Work(dest, _job(weights, dtype), size) as work:
        if work.resumed:
            arrays = stored.open_arrays(work.partial, 0)
        else:
            arrays = stored.create_arrays(work.partial, nest(shapes), chunks)
            work.prepared()

        def convert(tensor: hf.Tensor) -> str:
            array, kind = arrays[tensor.path], shapes[tensor.path].dtype
            layer = array if tensor.layer is None else array[tensor.layer]
            read, written = Checksum(), Checksum()
            for (_, index), block in zip(tensor.blocks(), weights.read(tensor), strict=True):
                part = layer[index]
                read.add(block)
                if block.dtype != kind:
                    block = block.astype(kind)
                    written.add(block)
                part.write(tensor.to_ours(block, tuple(part.shape))).result()
            compare(tensor.hf, weights.directory, expected, read.value)
            return written.value if kind != weights.dtype(tensor.hf) else read.value

        items = {n: (t, _bytes(t, weights)) for n, t in tensors.items()}
        work.each(items, convert, progress)
        copies = [n for n, t in weights.tensors.items() if t.copy_of_tied]
        work.done.update({name: work.done[hf.TABLE] for name in copies})
        checkpoint.create(work.partial, weights.config, weights.directory)
        return work.finish()


def _layout(
    tensors: dict[str, hf.Tensor], weights: HuggingFace, dtype: str | None
) -> tuple[dict[tuple[str, ...], Any], dict[tuple[str, ...], tuple[int, ...]]]:
    """Our arrays' shapes and types, and the part of each that is written at once."""
    layers: dict[tuple[str, ...], int] = {}
    for tensor in tensors.values():
        layers[tensor.path] = layers.get(tensor.path, 0) + 1
    shapes, chunks = {}, {}
    for name, tensor in tensors.items():
        stack = () if tensor.layer is None else (layers[tensor.path],)
        kind = weights.dtype(name) if dtype is None else jax.numpy.dtype(dtype)
        shapes[tensor.path] = jax.ShapeDtypeStruct((*stack, *tensor.shape), kind)
        chunk = list(tensor.shape)
        if tensor.block_rows < tensor.hf_shape[0]:
            chunk[tensor.groups[0][0]] = tensor.block_rows
        chunks[tensor.path] = (*(1 for _ in stack), *chunk)
    return shapes, chunks


def _job(weights: HuggingFace, dtype: str | None) -> dict[str, Any]:
    """What a resumed conversion must agree on: the same files and the same type."""
    files = [
        (str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in weights.files.files
    ]
    return {"to": "jax", "files": files, "dtype": dtype}


def _bytes(tensor: hf.Tensor, weights: HuggingFace) -> int:
    return math.prod(tensor.shape) * weights.dtype(tensor.hf).itemsize
