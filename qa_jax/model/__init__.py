"""What is computed: arrays in, arrays out. No file, no optimizer, no tokenizer is known here."""

from qa_jax.model.attention import Visible
from qa_jax.model.decoder import KVCache, TextDecoder
from qa_jax.model.encoder import AudioEncoder
from qa_jax.model.frontend import LogMel
from qa_jax.model.lora import (
    Adapter,
    adapt,
    check_patterns,
    delta,
    dropout_keys,
    held_as_declared,
    is_adapter_path,
    merge,
)
from qa_jax.model.module import (
    Declaration,
    Params,
    bind,
    count_parameters,
    declarations,
    flatten,
    initialize,
    join,
    nest,
    split,
    unstack,
)
from qa_jax.model.qwen2_audio import Audio, Qwen2Audio

__all__ = [
    "Adapter",
    "Audio",
    "AudioEncoder",
    "Declaration",
    "KVCache",
    "LogMel",
    "Params",
    "Qwen2Audio",
    "TextDecoder",
    "Visible",
    "adapt",
    "bind",
    "check_patterns",
    "count_parameters",
    "declarations",
    "delta",
    "dropout_keys",
    "flatten",
    "held_as_declared",
    "initialize",
    "is_adapter_path",
    "join",
    "merge",
    "nest",
    "split",
    "unstack",
]
