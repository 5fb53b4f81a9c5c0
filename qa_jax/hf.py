"""The border to Hugging Face: one table of tensors, and a lazy reader of safetensors directories.

Both conversion directions, their checks and the loader derive from `tensor_map`; nothing else in
the project knows a Hugging Face tensor name.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from qa_jax.config import ModelConfig, from_hf, read_json
from qa_jax.errors import InputError
from qa_jax.model import Params, Qwen2Audio, declarations, flatten, nest

Layout = Literal["copy", "linear", "linear_heads_in", "conv"]


@dataclass(frozen=True)
class Tensor:
    """One Hugging Face tensor and its place among our parameters.

    Attributes:
        hf: its name in released checkpoints.
        path: our parameter's path.
        layer: its index in the stacked parameter, or None where layers are not stacked.
        layout: how PyTorch lays it out: `copy` row-major as ours, `linear` (out, in), `conv`
            (out, in, width); `linear_heads_in` is a linear whose input is heads x head_dim.
        shape: our shape, without the layers' dimension.
        copy_of_tied: whether it repeats the embedding for readers that do not tie; may be absent.
    """

    hf: str
    path: tuple[str, ...]
    layer: int | None
    layout: Layout
    shape: tuple[int, ...]
    copy_of_tied: bool = False

    @property
    def hf_shape(self) -> tuple[int, ...]:
        if self.layout == "conv":
            return self.shape[::-1]
        if self.layout.startswith("linear"):
            ins = 2 if self.layout == "linear_heads_in" else 1
            return math.prod(self.shape[ins:]), math.prod(self.shape[:ins])
        # Biases of q, k and v are ours by head and theirs in one row; tables are the same.
        flat_heads = self.hf.endswith("_proj.bias")
        return (math.prod(self.shape),) if flat_heads else self.shape

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's layout -> ours, a view where possible."""
        return (array if self.layout == "copy" else array.T).reshape(self.shape)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """Ours -> PyTorch's layout, contiguous as safetensors needs it."""
        hf_shape = self.hf_shape
        if self.layout == "copy":
            return np.ascontiguousarray(array.reshape(hf_shape))
        return np.ascontiguousarray(array.reshape(hf_shape[::-1]).T)


# {} stands for the layer's index. Left: Hugging Face's module, ours, and its parameters.
_ENCODER_LAYER = "audio_tower.layers.{}.", ("encoder", "layers")
_DECODER_LAYER = "language_model.model.layers.{}.", ("decoder", "layers")
_Parameters = dict[str, tuple[str, Layout]]
_NORM: _Parameters = {"weight": ("scale", "copy"), "bias": ("bias", "copy")}
_LINEAR: _Parameters = {"weight": ("kernel", "linear"), "bias": ("bias", "copy")}
_LINEAR_HEADS_IN: _Parameters = {"weight": ("kernel", "linear_heads_in"), "bias": ("bias", "copy")}
_CONV: _Parameters = {"weight": ("kernel", "conv"), "bias": ("bias", "copy")}

_MODULES: dict[str, tuple[tuple[str, ...], _Parameters]] = {
    "audio_tower.conv1": (("encoder", "conv1"), _CONV),
    "audio_tower.conv2": (("encoder", "conv2"), _CONV),
    "audio_tower.embed_positions": (("encoder",), {"weight": ("embed_positions", "copy")}),
    "audio_tower.layer_norm": (("encoder", "layer_norm"), _NORM),
    **{
        _ENCODER_LAYER[0] + name: ((*_ENCODER_LAYER[1], *name.split(".")), kind)
        for name, kind in {
            "self_attn.q_proj": _LINEAR,
            "self_attn.k_proj": _LINEAR,
            "self_attn.v_proj": _LINEAR,
            "self_attn.out_proj": _LINEAR_HEADS_IN,
            "self_attn_layer_norm": _NORM,
            "fc1": _LINEAR,
            "fc2": _LINEAR,
            "final_layer_norm": _NORM,
        }.items()
    },
    "multi_modal_projector.linear": (("projector",), _LINEAR),
    "language_model.model.embed_tokens": (("decoder",), {"weight": ("embed_tokens", "copy")}),
    "language_model.model.norm": (("decoder", "norm"), _NORM),
    "language_model.lm_head": (("decoder",), {"weight": ("lm_head", "linear")}),
    **{
        _DECODER_LAYER[0] + name: ((*_DECODER_LAYER[1], *name.split(".")), kind)
        for name, kind in {
            "self_attn.q_proj": _LINEAR,
            "self_attn.k_proj": _LINEAR,
            "self_attn.v_proj": _LINEAR,
            "self_attn.o_proj": _LINEAR_HEADS_IN,
            "mlp.gate_proj": _LINEAR,
            "mlp.up_proj": _LINEAR,
            "mlp.down_proj": _LINEAR,
            "input_layernorm": _NORM,
            "post_attention_layernorm": _NORM,
        }.items()
    },
}


_HEAD = "language_model.lm_head.weight"
_TABLE = "language_model.model.embed_tokens.weight"


def tensor_map(config: ModelConfig) -> dict[str, Tensor]:
    """Every tensor of a checkpoint of this configuration, by its released name."""
    ours = declarations(Qwen2Audio(config))
    tensors: dict[str, Tensor] = {}
    for module, (prefix, parameters) in _MODULES.items():
        for suffix, (name, layout) in parameters.items():
            declared = ours.pop((*prefix, name), None)
            if declared is None:  # no bias here, or a tied head
                continue
            layers = range(declared.shape[0]) if declared.stacked else [None]
            shape = declared.shape[1:] if declared.stacked else declared.shape
            for i in layers:
                hf = f"{module.format(i)}.{suffix}"
                tensors[hf] = Tensor(hf, (*prefix, name), i, layout, shape)
    if config.text.tie_word_embeddings:
        # transformers 5.10 and later load no tied head for this model: files carry the copy.
        table = tensors[_TABLE]
        tensors[_HEAD] = dataclasses.replace(table, hf=_HEAD, copy_of_tied=True)
    assert not ours, f"parameters without a Hugging Face name: {sorted(ours)}"
    return tensors


def released_name(name: str) -> str:
    """The released spelling of a name; transformers 5.10 and later hold another in memory."""
    if name == "lm_head.weight":
        return _HEAD
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.")


_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class SafetensorsDir:
    """The tensors of a Hugging Face directory, each read from disk when it is asked for.

    Names are the released ones, whatever layout the files use. Opening reads headers only and
    raises InputError, listing every problem, for a missing or damaged shard, an index that
    disagrees with the shards, a truncated tensor, or pickled weights.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._entries: dict[str, tuple[Path, int, np.dtype, tuple[int, ...]]] = {}
        problems: list[str] = []
        for file in self._files():
            try:
                self._read_header(file, problems)
            except (OSError, ValueError, KeyError, TypeError) as error:
                problems.append(f"{file.name}: unreadable header ({error})")
        raise_problems(self.directory, problems, "download or save the checkpoint again")

    def _files(self) -> list[Path]:
        index = self.directory / "model.safetensors.index.json"
        if index.exists():
            weight_map = json.loads(index.read_text())["weight_map"]
            return [self.directory / name for name in sorted(set(weight_map.values()))]
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

    def _read_header(self, file: Path, problems: list[str]) -> None:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size:
                raise ValueError(f"claims {length} bytes of a file of {size}")
            header = json.loads(stream.read(length))
        start = 8 + length
        for raw_name, entry in header.items():
            if raw_name == "__metadata__":
                continue
            name = released_name(raw_name)
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

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name][3]

    def dtype(self, name: str) -> np.dtype:
        return self._entries[name][2]

    def read(self, name: str) -> np.ndarray:
        """The tensor as a read-only view of its file: nothing is read before it is used."""
        file, offset, dtype, shape = self._entries[name]
        return np.memmap(file, dtype, "r", offset, shape)


def open_model(directory: str | Path) -> tuple[ModelConfig, SafetensorsDir]:
    """The model configuration and the tensors of a Hugging Face directory, checked to fit.

    Where config.json ties the head and the files hold another head all the same, the files are
    right: only a model whose head was not tied can have written them.
    """
    path = Path(directory) / "config.json"
    config = from_hf(read_json(path), path)
    source = SafetensorsDir(directory)
    both = config.text.tie_word_embeddings and {_HEAD, _TABLE} <= set(source)
    if both and not np.array_equal(source.read(_HEAD), source.read(_TABLE)):
        warnings.warn(f"{path} ties the head, the files hold its own: using that", stacklevel=2)
        text = dataclasses.replace(config.text, tie_word_embeddings=False)
        config = dataclasses.replace(config, text=text)
    check(source, tensor_map(config))
    return config, source


def check(source: SafetensorsDir, tensors: dict[str, Tensor]) -> None:
    """Raises InputError listing every missing, extra and misshapen tensor."""
    problems = [
        f"{name}: missing"
        for name, tensor in tensors.items()
        if name not in source and not tensor.copy_of_tied
    ]
    for name in source:
        if name not in tensors:
            problems.append(f"{name}: not a tensor of this model")
        elif source.shape(name) != tensors[name].hf_shape:
            expected = tensors[name].hf_shape
            problems.append(f"{name}: shape {source.shape(name)}, expected {expected}")
    raise_problems(source.directory, problems, "compare config.json with the files")


def raise_problems(source: object, problems: list[str], remedy: str) -> None:
    """One InputError for all problems, each on a line of its own where there are several."""
    if len(problems) == 1:
        raise InputError(source, problems[0], remedy)
    if problems:
        lines = "".join(f"\n  {p}" for p in problems)
        raise InputError(source, f"{len(problems)} problems:{lines}\n", remedy)


def load_params(source: SafetensorsDir, config: ModelConfig) -> dict[tuple[str, ...], np.ndarray]:
    """All parameters as host arrays by path, in the files' own types, layers stacked."""
    tensors = {n: t for n, t in tensor_map(config).items() if not t.copy_of_tied}
    layers = collections.Counter(t.path for t in tensors.values())
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for name, tensor in tensors.items():
        array = tensor.to_ours(source.read(name))
        if tensor.layer is None:
            flat[tensor.path] = np.ascontiguousarray(array)
            continue
        if tensor.path not in flat:
            flat[tensor.path] = np.empty((layers[tensor.path], *tensor.shape), array.dtype)
        stacked = flat[tensor.path]
        if stacked.dtype != array.dtype:
            raise InputError(
                source.directory, f"{name}: {array.dtype}, other layers are {stacked.dtype}"
            )
        stacked[tensor.layer] = array
    return flat


def place(flat: dict[tuple[str, ...], np.ndarray], places: Params, dtype: Any) -> Params:
    """Host parameters as device arrays of a type (None keeps theirs), each where `places` says."""
    arrays = {}
    for path, where in flatten(places).items():
        array = flat.pop(path)  # let go of the host's copy as soon as the device has its own
        arrays[path] = jax.device_put(array if dtype is None else array.astype(dtype), where)
    return nest(arrays)
