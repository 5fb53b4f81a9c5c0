"""The table of tensors: Hugging Face's name, qa_jax's path, and the conversion between layouts."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qa_jax.config import ModelConfig
from qa_jax.model import Qwen2Audio, param_specs
from qa_jax.typing import ParamPath, Shaped

Layout = Literal["copy", "linear", "linear_heads_in", "conv"]


@dataclass(frozen=True)
class TensorSpec:
    """One Hugging Face tensor and the qa_jax parameter that holds it.

    Attributes:
        hf: its name in released checkpoints.
        path: the qa_jax parameter's path.
        layer: its index in the stacked parameter, or None for a parameter that is not stacked.
        layout: PyTorch's layout: `copy` the same as qa_jax's, `linear` (out, in), `conv` (out, in,
            width); `linear_heads_in` is a linear layer whose input is heads x head_dim.
        shape: the qa_jax shape, without the dimension of layers.
        is_tied_copy: whether it repeats the embedding table for readers that do not tie the head;
            it may be absent.
    """

    hf: str
    path: ParamPath
    layer: int | None
    layout: Layout
    shape: tuple[int, ...]
    is_tied_copy: bool = False

    @functools.cached_property
    def hf_dims(self) -> tuple[tuple[int, ...], ...]:
        """For each HF dimension, the qa_jax dimensions that it flattens, outermost first."""
        dims = tuple(range(len(self.shape)))
        if self.layout == "conv":
            return tuple((d,) for d in dims[::-1])
        if self.layout.startswith("linear"):
            ins = 2 if self.layout == "linear_heads_in" else 1
            return dims[ins:], dims[:ins]
        # Biases of q, k and v have a dimension of heads, which is flattened in HF.
        return (dims,) if self.hf.endswith("_proj.bias") else tuple((d,) for d in dims)

    @functools.cached_property
    def transpose_order(self) -> list[int]:
        """The qa_jax dimensions in Hugging Face's order."""
        return [d for dims in self.hf_dims for d in dims]

    @property
    def hf_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.shape[d] for d in dims) for dims in self.hf_dims)

    def from_hf(
        self, array: Shaped[np.ndarray, "..."], shape: tuple[int, ...] | None = None
    ) -> Shaped[np.ndarray, "..."]:
        """PyTorch's layout -> qa_jax's; `shape` is the qa_jax shape of a part of the tensor."""
        shape = self.shape if shape is None else shape
        if self.layout.startswith("linear"):
            return transposed(array).reshape(shape)
        order = self.transpose_order
        return array.reshape([shape[d] for d in order]).transpose(np.argsort(order))

    def to_hf(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """qa_jax's layout, whole or a part -> PyTorch's, contiguous as safetensors requires."""
        sizes = [math.prod(array.shape[d] for d in dims) for dims in self.hf_dims]
        if self.layout.startswith("linear"):
            return transposed(array.reshape(sizes[::-1]))
        return np.ascontiguousarray(array.transpose(self.transpose_order).reshape(sizes))

    def blocks(self) -> list[tuple[slice, tuple[slice, ...]]]:
        """Parts to convert one at a time: rows of Hugging Face's tensor, and the qa_jax index.

        A single part except for tables of which several copies would take too much memory.
        """
        rows = self.hf_shape[0]
        if self.block_rows == rows:
            return [(slice(0, rows), (slice(None),) * len(self.shape))]
        parts = [slice(i, min(i + self.block_rows, rows)) for i in range(0, rows, self.block_rows)]
        (dim,) = self.hf_dims[0]
        whole = (slice(None),)
        return [(p, whole * dim + (p,) + whole * (len(self.shape) - dim - 1)) for p in parts]

    @property
    def block_rows(self) -> int:
        """Rows of Hugging Face's tensor in each of `blocks` except the last."""
        if math.prod(self.shape) <= _LARGE or len(self.hf_dims[0]) > 1:
            return self.hf_shape[0]
        return max(1, _LARGE // 2 // math.prod(self.hf_shape[1:]))


def transposed(matrix: Shaped[np.ndarray, "rows columns"]) -> Shaped[np.ndarray, "columns rows"]:
    """A contiguous transpose, by blocks of rows: three times as fast as NumPy's."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for i in range(0, matrix.shape[0], 16):
        out[:, i : i + 16] = matrix[i : i + 16].T
    return out


_LARGE = 2**26
"""Elements above which a tensor is converted in parts: all of a layer's tensors are smaller."""

# {} is the layer's index. Hugging Face's module: qa_jax's module and its parameters.
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


LM_HEAD = "language_model.lm_head.weight"
EMBED_TOKENS = "language_model.model.embed_tokens.weight"


def tensor_map(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of a checkpoint of this configuration, by its released name."""
    # Released checkpoints have no int8 weights.
    specs = param_specs(Qwen2Audio(dataclasses.replace(config, weights="float")))
    tensors: dict[str, TensorSpec] = {}
    for module, (prefix, parameters) in _MODULES.items():
        for suffix, (name, layout) in parameters.items():
            spec = specs.pop((*prefix, name), None)
            if spec is None:  # no bias, or a tied head
                continue
            layers = range(spec.shape[0]) if spec.stacked else [None]
            shape = spec.shape[1:] if spec.stacked else spec.shape
            for i in layers:
                hf = f"{module.format(i)}.{suffix}"
                tensors[hf] = TensorSpec(hf, (*prefix, name), i, layout, shape)
    if config.text.tie_word_embeddings:
        # transformers 5.10 and later do not tie this model's head on loading: files hold a copy.
        table = tensors[EMBED_TOKENS]
        tensors[LM_HEAD] = dataclasses.replace(table, hf=LM_HEAD, is_tied_copy=True)
    assert not specs, f"parameters without a Hugging Face name: {sorted(specs)}"
    return tensors


def released_name(name: str) -> str:
    """The released name of a tensor; transformers 5.10 and later use another one in memory."""
    if name == "lm_head.weight":
        return LM_HEAD
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    return name.removeprefix("model.")
