"""Hugging Face's tensors onto devices: each reads its own part of the files, and nothing else."""

from __future__ import annotations

import collections
import math
from typing import Any

import jax
import numpy as np

from qa_jax.config import ModelConfig
from qa_jax.hf.reader import SafetensorsDir
from qa_jax.hf.table import Tensor, tensor_map
from qa_jax.model import Params, flatten, nest

Index = tuple[slice, ...]


def load_params(
    source: SafetensorsDir, config: ModelConfig, places: Params, dtype: Any = None
) -> Params:
    """All parameters, layers stacked, each where `places` (shardings) says.

    Of a parameter that is cut over devices, a process reads the parts of its own devices alone.
    `dtype` None keeps the files' types.
    """
    layers: dict[tuple[str, ...], list[Tensor]] = collections.defaultdict(list)
    for tensor in tensor_map(config).values():
        if not tensor.copy_of_tied:
            layers[tensor.path].append(tensor)
    where = flatten(places)
    return nest({path: _place(source, some, where[path], dtype) for path, some in layers.items()})


def _place(source: SafetensorsDir, tensors: list[Tensor], where: Any, dtype: Any) -> jax.Array:
    one = tensors[0]
    stacked = one.layer is not None
    shape = (len(tensors), *one.shape) if stacked else one.shape
    target = source.dtype(one.hf) if dtype is None else np.dtype(dtype)
    read: dict[str, np.ndarray] = {}  # devices that hold the same part share one reading of it

    def part(index: Index | None) -> np.ndarray:
        assert index is not None
        key = str(index)
        if key not in read:
            rest = tuple(slice(*s.indices(n)) for s, n in zip(index, shape, strict=True))
            if stacked:
                some = tensors[rest[0]]
                rest = rest[1:]
                read[key] = np.empty((len(some), *(s.stop - s.start for s in rest)), target)
                for out, tensor in zip(read[key], some, strict=True):
                    out[...] = read_part(source, tensor, rest)
            else:
                read[key] = np.ascontiguousarray(read_part(source, one, rest), target)
        return read[key]

    return jax.make_array_from_callback(shape, where, part)


def read_part(source: SafetensorsDir, tensor: Tensor, index: Index) -> np.ndarray:
    """A part of a tensor in our layout, read from as few bytes of the file as hold it."""
    theirs, shape = [], list(tensor.shape)
    for group in tensor.groups:
        outer, *inner = group
        size = math.prod(tensor.shape[d] for d in inner)
        theirs.append(slice(index[outer].start * size, index[outer].stop * size))
        shape[outer] = index[outer].stop - index[outer].start
    ours = tensor.to_ours(source.read(tensor.hf, tuple(theirs)), tuple(shape))
    # Inner dimensions of a group were read whole.
    outers = {group[0] for group in tensor.groups}
    return ours[tuple(slice(None) if d in outers else s for d, s in enumerate(index))]
