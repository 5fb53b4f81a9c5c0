"""The model: arrays in, arrays out. No files, no optimizer, no tokenizer, no adapters."""

from qa_jax.model.attention import AttentionMask
from qa_jax.model.cache import CacheRows, KVCache
from qa_jax.model.decoder import TextDecoder
from qa_jax.model.encoder import AudioEncoder
from qa_jax.model.frontend import LogMel
from qa_jax.model.module import bind
from qa_jax.model.params import (
    ParamSpec,
    count_parameters,
    initialize,
    param_specs,
    parameter_bytes,
    set_layer,
)
from qa_jax.model.quantization import (
    cast_to_param_dtype,
    cast_to_param_dtypes,
    declare_int8,
    linear_layers,
)
from qa_jax.model.qwen2_audio import AudioInput, Qwen2Audio

__all__ = [
    "AttentionMask",
    "AudioEncoder",
    "AudioInput",
    "CacheRows",
    "KVCache",
    "LogMel",
    "ParamSpec",
    "Qwen2Audio",
    "TextDecoder",
    "bind",
    "cast_to_param_dtype",
    "cast_to_param_dtypes",
    "count_parameters",
    "declare_int8",
    "initialize",
    "linear_layers",
    "param_specs",
    "parameter_bytes",
    "set_layer",
]
