"""The one table of tensors: Hugging Face's name, our path, and how one becomes the other."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qa_jax.config import ModelConfig
from qa_jax.model import Qwen2Audio, declarations

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

    @functools.cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Which of our dimensions, outermost first, make up each of Hugging Face's."""
        dims = tuple(range(len(self.shape)))
        if self.layout == "conv":
            return tuple((d,) for d in dims[::-1])
        if self.layout.startswith("linear"):
            ins = 2 if self.layout == "linear_heads_in" else 1
            return dims[ins:], dims[:ins]
        # Biases of q, k and v are ours by head and theirs in one row; tables are the same.
        return (dims,) if self.hf.endswith("_proj.bias") else tuple((d,) for d in dims)

    @functools.cached_property
    def order(self) -> list[int]:
        """Our dimensions in the order in which theirs hold them."""
        return [d for group in self.groups for d in group]

    @property
    def hf_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.shape[d] for d in group) for group in self.groups)

    def to_ours(self, array: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """PyTorch's layout -> ours; of a part, with our `shape` of that part."""
        shape = self.shape if shape is None else shape
        if self.layout.startswith("linear"):
            return turned(array).reshape(shape)
        return array.reshape([shape[d] for d in self.order]).transpose(np.argsort(self.order))

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        """Ours, whole or a part -> PyTorch's layout, contiguous as safetensors needs it."""
        sizes = [math.prod(array.shape[d] for d in group) for group in self.groups]
        if self.layout.startswith("linear"):
            return turned(array.reshape(sizes[::-1]))
        return np.ascontiguousarray(array.transpose(self.order).reshape(sizes))

    def blocks(self) -> list[tuple[slice, tuple[slice, ...]]]:
        """Parts to convert one at a time: rows of Hugging Face's tensor, and our index of them.

        One part but for tables too large to be held a few times over.
        """
        rows = self.hf_shape[0]
        if self.block_rows == rows:
            return [(slice(0, rows), (slice(None),) * len(self.shape))]
        parts = [slice(i, min(i + self.block_rows, rows)) for i in range(0, rows, self.block_rows)]
        (dim,) = self.groups[0]
        whole = (slice(None),)
        return [(p, whole * dim + (p,) + whole * (len(self.shape) - dim - 1)) for p in parts]

    @property
    def block_rows(self) -> int:
        """Rows of Hugging Face's tensor in each of `blocks` but the last."""
        if math.prod(self.shape) <= _LARGE or len(self.groups[0]) > 1:
            return self.hf_shape[0]
        return max(1, _LARGE // 2 // math.prod(self.hf_shape[1:]))


def turned(matrix: np.ndarray) -> np.ndarray:
    """A matrix's transpose, contiguous: some rows at a time, three times as fast as at once."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for i in range(0, matrix.shape[0], 16):
        out[:, i : i + 16] = matrix[i : i + 16].T
    return out


_LARGE = 2**26
"""Numbers above which a tensor is converted in parts: all of a layer's are smaller."""

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


HEAD = "language_model.lm_head.weight"
TABLE = "language_model.model.embed_tokens.weight"


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
        table = tensors[TABLE]
        tensors[HEAD] = dataclasses.replace(table, hf=HEAD, copy_of_tied=True)
    assert not ours, f"parameters without a Hugging Face name: {sorted(ours)}"
    return tensors


def released_name(name: str) -> str:
    """The released spelling of a name; transformers 5.10 and later hold another in memory."""
    if name == "lm_head.weight":
        return HEAD
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.")
