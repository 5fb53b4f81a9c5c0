"""Hugging Face's safetensors -> a qa_jax checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import jax

from convert_weights.hub import check_downloads, resolve_source
from convert_weights.job import (
    Checksum,
    ConversionJob,
    compare,
    read_checksums,
    refuse_existing,
)
from convert_weights.weights import HFWeights
from qa_jax import checkpoint, hf
from qa_jax.checkpoint import array_store
from qa_jax.config import JsonDict
from qa_jax.terminal import Progress
from qa_jax.trees import unflatten_dict
from qa_jax.typing import ParamPath


def to_jax(
    source: str | Path,
    dest: str | Path,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Converts a Hugging Face directory, or a model of the hub, into a qa_jax checkpoint.

    Everything is checked before anything is written. A few tensors are in memory at a time,
    whatever the model's size; after an interruption, the same call resumes.

    Args:
        source: a directory, or a hub id as "Qwen/Qwen2-Audio-7B-Instruct".
        dest: the new checkpoint.
        dtype: "bfloat16" or "float32"; None keeps the files' dtypes, bit for bit.
        progress: called with bytes read.

    Returns:
        The checksum of all tensors as stored.

    Raises:
        InputError: listing every tensor that does not match, or naming what cannot be read or
            written.
    """
    refuse_existing(dest)
    weights = HFWeights(resolve_source(source))
    check_downloads(weights.files.files)
    tensors = {n: t for n, t in weights.tensors.items() if not t.is_tied_copy}
    shapes, chunks = _layout(tensors, weights, dtype)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes.values())
    expected = read_checksums(weights.directory)
    with ConversionJob(dest, _description(weights, dtype), size) as job:
        if job.resumed:
            arrays = array_store.open_arrays(job.partial, 0)
        else:
            arrays = array_store.create_arrays(job.partial, unflatten_dict(shapes), chunks)
            job.mark_preallocated()

        def convert(tensor: hf.TensorSpec) -> str:
            array, target = arrays[tensor.path], shapes[tensor.path].dtype
            layer = array if tensor.layer is None else array[tensor.layer]
            read, written = Checksum(), Checksum()
            for (_, index), block in zip(tensor.blocks(), weights.read(tensor), strict=True):
                part = layer[index]
                read.add(block)
                if block.dtype != target:
                    block = block.astype(target)
                    written.add(block)
                part.write(tensor.from_hf(block, tuple(part.shape))).result()
            compare(tensor.hf, weights.directory, expected, read.value)
            return written.value if target != weights.dtype(tensor.hf) else read.value

        items = {n: (t, _bytes(t, weights)) for n, t in tensors.items()}
        job.convert_all(items, convert, progress)
        copies = [n for n, t in weights.tensors.items() if t.is_tied_copy]
        job.done.update({name: job.done[hf.EMBED_TOKENS] for name in copies})
        checkpoint.create(job.partial, weights.config, weights.directory)
        return job.finish()


def _layout(
    tensors: dict[str, hf.TensorSpec], weights: HFWeights, dtype: str | None
) -> tuple[dict[ParamPath, jax.ShapeDtypeStruct], dict[ParamPath, tuple[int, ...]]]:
    """Shapes and dtypes of the qa_jax arrays, and their chunk shapes."""
    layers: dict[ParamPath, int] = {}
    for tensor in tensors.values():
        layers[tensor.path] = layers.get(tensor.path, 0) + 1
    shapes, chunks = {}, {}
    for name, tensor in tensors.items():
        stack = () if tensor.layer is None else (layers[tensor.path],)
        target = weights.dtype(name) if dtype is None else jax.numpy.dtype(dtype)
        shapes[tensor.path] = jax.ShapeDtypeStruct((*stack, *tensor.shape), target)
        chunk = list(tensor.shape)
        if tensor.block_rows < tensor.hf_shape[0]:
            chunk[tensor.hf_dims[0][0]] = tensor.block_rows
        chunks[tensor.path] = (*(1 for _ in stack), *chunk)
    return shapes, chunks


def _description(weights: HFWeights, dtype: str | None) -> JsonDict:
    """What must be equal to resume a conversion: the files and the dtype."""
    files = [
        (str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in weights.files.files
    ]
    return {"to": "jax", "files": files, "dtype": dtype}


def _bytes(tensor: hf.TensorSpec, weights: HFWeights) -> int:
    return math.prod(tensor.shape) * weights.dtype(tensor.hf).itemsize
