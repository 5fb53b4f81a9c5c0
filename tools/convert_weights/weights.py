"""A model's tensors in Hugging Face's layout, from a directory of either kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from convert_weights.hub import resolve_source
from qa_jax import checkpoint, hf
from qa_jax.checkpoint import array_store
from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from qa_jax.lora import lora_delta
from qa_jax.trees import flatten_dict
from qa_jax.typing import Shaped

if TYPE_CHECKING:
    from tensorstore import TensorStore


@runtime_checkable
class Weights(Protocol):
    """A model on disk.

    Attributes:
        directory: where it is.
        config: its configuration.
        tensors: the table by released name.
    """

    directory: Path
    config: ModelConfig
    tensors: dict[str, hf.TensorSpec]

    def dtype(self, name: str) -> np.dtype: ...

    def read(self, tensor: hf.TensorSpec) -> Iterator[Shaped[np.ndarray, "..."]]:
        """The tensor in Hugging Face's layout, block by block (see `TensorSpec.blocks`)."""


class HFWeights:
    """A directory of safetensors, checked against its config.json."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.config, self.files = hf.open_model(directory)
        table = hf.tensor_map(self.config)
        # In the order of the files, which is the fastest to read.
        names = sorted(table, key=lambda name: self.files.offset(self._stored_name(name)))
        self.tensors = {n: table[n] for n in names}

    def _stored_name(self, name: str) -> str:
        """A tied head may be absent from the files: it is the embedding table."""
        return name if name in self.files else hf.EMBED_TOKENS

    def dtype(self, name: str) -> np.dtype:
        return self.files.dtype(self._stored_name(name))

    def read(self, tensor: hf.TensorSpec) -> Iterator[np.ndarray]:
        for rows, _ in tensor.blocks():
            yield self.files.read(self._stored_name(tensor.hf), (rows,))


class QaJaxWeights:
    """A qa_jax checkpoint; of a training run, the latest step by default."""

    def __init__(self, directory: str | Path, step: int | None = None) -> None:
        self.directory = Path(directory)
        self.config = checkpoint.read_config(directory)
        self.tensors = hf.tensor_map(self.config)
        self.step = checkpoint.find_step(directory, step)
        self.arrays = array_store.open_arrays(directory, self.step)
        problems = []
        for name, tensor in self.tensors.items():
            if tensor.path not in self.arrays:
                problems.append(f"{name}: {'/'.join(tensor.path)} is missing")
                continue
            shape = self.arrays[tensor.path].shape
            if (shape if tensor.layer is None else shape[1:]) != tensor.shape:
                problems.append(f"{name}: {'/'.join(tensor.path)} has shape {shape}")
        paths = {t.path for t in self.tensors.values()}
        if self.config.weights == "int8":
            paths |= {(*path[:-1], "kernel_scale") for path in paths if path[-1] == "kernel"}
        problems += [
            f"{'/'.join(p)}: not a parameter of this model" for p in self.arrays if p not in paths
        ]
        hf.raise_problems(directory, problems, f"compare {checkpoint.CONFIG_FILE} with the step")

    def dtype(self, name: str) -> np.dtype:
        return self.arrays[self.tensors[name].path].dtype.numpy_dtype

    def read(self, tensor: hf.TensorSpec) -> Iterator[np.ndarray]:
        array = self._layer(tensor)
        for _, index in tensor.blocks():
            try:
                yield tensor.to_hf(array[index].read().result())
            except (ValueError, OSError) as error:
                raise InputError(
                    self.directory,
                    f"{'/'.join(tensor.path)} cannot be read ({' '.join(str(error).split())})",
                    "the file is damaged: convert again, or use another step",
                ) from error

    def _layer(self, tensor: hf.TensorSpec) -> TensorStore:
        array = self.arrays[tensor.path]
        return array if tensor.layer is None else array[tensor.layer]


class MergedWeights:
    """The base model of a qa_jax adapter, with the adapter merged in.

    The product is computed for one tensor at a time, in float32, and rounded once.
    """

    def __init__(self, directory: str | Path, step: int | None = None) -> None:
        self.directory = Path(directory)
        self.step = checkpoint.find_step(directory, step)
        self.adapter, config = checkpoint.load_adapter(directory, self.step)
        base = resolve_source(config.base)
        is_adapter = checkpoint.is_adapter(base)
        self.base: Weights = MergedWeights(base) if is_adapter else open_weights(base)
        self.config: ModelConfig = self.base.config
        self.tensors: dict[str, hf.TensorSpec] = self.base.tensors
        self.lora_params = flatten_dict(self.adapter.params)

    def dtype(self, name: str) -> np.dtype:
        return self.base.dtype(name)

    def read(self, tensor: hf.TensorSpec) -> Iterator[np.ndarray]:
        layer = tensor.path[:-1]
        if tensor.path[-1] != "kernel" or layer not in self.adapter.scales:
            yield from self.base.read(tensor)
            return
        a, b = (self.lora_params[(*layer, side)] for side in ("lora_a", "lora_b"))
        if tensor.layer is not None:
            a, b = a[tensor.layer], b[tensor.layer]
        delta = self.adapter.scales[layer] * np.asarray(lora_delta(a, b, tensor.shape))
        for (_, index), block in zip(tensor.blocks(), self.base.read(tensor), strict=True):
            merged = block.astype(np.float32) + tensor.to_hf(delta[index])
            yield merged.astype(block.dtype)


def open_weights(directory: str | Path) -> Weights:
    """Opens a directory of either kind."""
    if checkpoint.is_checkpoint(directory):
        return QaJaxWeights(directory)
    if (Path(directory) / "config.json").is_file():
        return HFWeights(directory)
    raise InputError(
        directory,
        "contains neither config.yaml (a qa_jax checkpoint) nor config.json (Hugging Face)",
        "name a checkpoint's directory",
    )
