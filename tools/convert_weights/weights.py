"""A model's tensors in Hugging Face's layout, from either kind of directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from convert_weights.hub import local
from qa_jax import checkpoint, hf, stored
from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from qa_jax.model import delta, flatten


class Weights(Protocol):
    """Attributes: `directory`, `config`, and `tensors`, the table by released name."""

    directory: Path
    config: ModelConfig
    tensors: dict[str, hf.Tensor]

    def dtype(self, name: str) -> np.dtype: ...

    def read(self, tensor: hf.Tensor) -> Iterator[np.ndarray]:
        """The tensor in Hugging Face's layout, one of its `blocks` after the other."""


class HuggingFace:
    """A directory of safetensors, checked to fit its config.json."""

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.config, self.files = hf.open_model(directory)
        table = hf.tensor_map(self.config)
        # In the order of the files: read as they lie on the disk.
        names = sorted(table, key=lambda name: self.files.place(self._stored(name)))
        self.tensors = {n: table[n] for n in names}

    def _stored(self, name: str) -> str:
        """A tied head may be left out of the files: it is the embedding."""
        return name if name in self.files else hf.TABLE

    def dtype(self, name: str) -> np.dtype:
        return self.files.dtype(self._stored(name))

    def read(self, tensor: hf.Tensor) -> Iterator[np.ndarray]:
        for rows, _ in tensor.blocks():
            yield self.files.read(self._stored(tensor.hf), (rows,))


class Ours:
    """A qa_jax checkpoint; of a training run, the latest step unless `step` says otherwise."""

    def __init__(self, directory: str | Path, step: int | None = None) -> None:
        self.directory = Path(directory)
        self.config = checkpoint.read_config(directory)
        self.tensors = hf.tensor_map(self.config)
        self.step = checkpoint.find_step(directory, step)
        self.arrays = stored.open_arrays(directory, self.step)
        problems = []
        for name, tensor in self.tensors.items():
            if tensor.path not in self.arrays:
                problems.append(f"{name}: {'/'.join(tensor.path)} is missing")
                continue
            shape = self.arrays[tensor.path].shape
            if (shape if tensor.layer is None else shape[1:]) != tensor.shape:
                problems.append(f"{name}: {'/'.join(tensor.path)} has shape {shape}")
        paths = {t.path for t in self.tensors.values()}
        problems += [
            f"{'/'.join(p)}: no parameter of this model" for p in self.arrays if p not in paths
        ]
        hf.raise_problems(directory, problems, f"compare {checkpoint.CONFIG_FILE} with the step")

    def dtype(self, name: str) -> np.dtype:
        return self.arrays[self.tensors[name].path].dtype.numpy_dtype

    def read(self, tensor: hf.Tensor) -> Iterator[np.ndarray]:
        array = self._layer(tensor)
        for _, index in tensor.blocks():
            try:
                yield tensor.to_hf(array[index].read().result())
            except (ValueError, OSError) as error:
                raise InputError(
                    self.directory,
                    f"{'/'.join(tensor.path)} cannot be read ({' '.join(str(error).split())})",
                    "the file is damaged: convert again, or take another step",
                ) from error

    def _layer(self, tensor: hf.Tensor) -> Any:
        array = self.arrays[tensor.path]
        return array if tensor.layer is None else array[tensor.layer]


class Merged:
    """The model that an adapter of ours names, with the adapter's change.

    A change is computed for one tensor at a time, in float32, and rounded once.
    """

    def __init__(self, directory: str | Path, step: int | None = None) -> None:
        self.directory = Path(directory)
        self.step = checkpoint.find_step(directory, step)
        self.adapter, card = checkpoint.load_adapter(directory, self.step)
        base = local(card.base)
        self.base: Weights = Merged(base) if checkpoint.is_adapter(base) else open_weights(base)
        self.config: ModelConfig = self.base.config
        self.tensors: dict[str, hf.Tensor] = self.base.tensors
        self.low = flatten(self.adapter.params)

    def dtype(self, name: str) -> np.dtype:
        return self.base.dtype(name)

    def read(self, tensor: hf.Tensor) -> Iterator[np.ndarray]:
        layer = tensor.path[:-1]
        if tensor.path[-1] != "kernel" or layer not in self.adapter.scales:
            yield from self.base.read(tensor)
            return
        a, b = (self.low[(*layer, side)] for side in ("lora_a", "lora_b"))
        if tensor.layer is not None:
            a, b = a[tensor.layer], b[tensor.layer]
        change = self.adapter.scales[layer] * np.asarray(delta(a, b, tensor.shape))
        for (_, index), block in zip(tensor.blocks(), self.base.read(tensor), strict=True):
            merged = block.astype(np.float32) + tensor.to_hf(change[index])
            yield merged.astype(block.dtype)


def open_weights(directory: str | Path) -> Weights:
    """Of either kind."""
    if checkpoint.is_checkpoint(directory):
        return Ours(directory)
    if (Path(directory) / "config.json").is_file():
        return HuggingFace(directory)
    raise InputError(
        directory,
        "holds neither config.yaml (a qa_jax checkpoint) nor config.json (Hugging Face's)",
        "name a checkpoint's directory",
    )
