"""Loading Hugging Face's tensors onto devices: each process reads only its own shards."""

from __future__ import annotations

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from qa_jax.config import ModelConfig
from qa_jax.hf.reader import SafetensorsDir
from qa_jax.hf.table import TensorSpec, tensor_map
from qa_jax.model import Qwen2Audio, cast_to_param_dtype, set_layer
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import Array, DType, ParamPath, Params, Shaped

Index = tuple[slice, ...]


def load_params(
    source: SafetensorsDir, config: ModelConfig, shardings: Params, dtype: DType = None
) -> Params:
    """All parameters, layers stacked, with these shardings.

    A process reads only the shards of its own devices. `dtype` None keeps the files' dtypes. Where
    the model has int8 kernels, each is made as soon as it has been read.
    """
    model = Qwen2Audio(config)
    layers: dict[ParamPath, list[TensorSpec]] = collections.defaultdict(list)
    for tensor in tensor_map(config).values():
        if not tensor.is_tied_copy:
            layers[tensor.path].append(tensor)
    flat = flatten_dict(shardings)
    loaded: dict[ParamPath, jax.Array] = {}
    # The largest tensors that are no stacks first, while there is room to rearrange them.
    for path, tensors in sorted(layers.items(), key=lambda item: len(item[1])):
        loaded |= cast_to_param_dtype(model, path, _load(source, tensors, flat[path], dtype))
    return unflatten_dict(loaded)


def _load(
    source: SafetensorsDir, tensors: list[TensorSpec], sharding: Sharding, dtype: DType
) -> Shaped[Array, "..."]:
    first = tensors[0]
    target = source.dtype(first.hf) if dtype is None else np.dtype(dtype)
    if first.layer is None:
        return _read(source, first, sharding, target)
    of_layer = sharding
    if isinstance(sharding, NamedSharding):
        of_layer = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    # Layer by layer: the host never holds a whole stack beside the device's.
    stack = jnp.zeros((len(tensors), *first.shape), target, device=sharding)
    for i, tensor in enumerate(tensors):
        stack = set_layer(stack, _read(source, tensor, of_layer, target), i)
    return stack


def _read(
    source: SafetensorsDir, tensor: TensorSpec, sharding: Sharding, dtype: DType
) -> Shaped[Array, "..."]:
    parts: dict[str, np.ndarray] = {}  # devices with the same shard share one read

    def read(index: Index | None) -> np.ndarray:
        assert index is not None
        key = str(index)
        if key not in parts:
            bounds = tuple(slice(*s.indices(n)) for s, n in zip(index, tensor.shape, strict=True))
            parts[key] = np.ascontiguousarray(read_part(source, tensor, bounds), dtype)
        return parts[key]

    return jax.make_array_from_callback(tensor.shape, sharding, read)


def read_part(
    source: SafetensorsDir, tensor: TensorSpec, index: Index
) -> Shaped[np.ndarray, "..."]:
    """A part of a tensor in qa_jax's layout, read from the fewest bytes that contain it."""
    hf_index, shape = [], list(tensor.shape)
    for outer, *inner in tensor.hf_dims:
        size = math.prod(tensor.shape[d] for d in inner)
        hf_index.append(slice(index[outer].start * size, index[outer].stop * size))
        shape[outer] = index[outer].stop - index[outer].start
    part = tensor.from_hf(source.read(tensor.hf, tuple(hf_index)), tuple(shape))
    # Inner dimensions were read whole.
    outers = {dims[0] for dims in tensor.hf_dims}
    return part[tuple(slice(None) if d in outers else s for d, s in enumerate(index))]
