"""Hugging Face interoperability: the table of tensors, a lazy reader, loading onto devices, PEFT.

Both conversion directions, their checks and the loader derive from `tensor_map`; no other package
contains a Hugging Face tensor name.
"""

from qa_jax.hf.load import load_params
from qa_jax.hf.peft import in_memory_name, is_peft, read_peft, write_peft
from qa_jax.hf.reader import SafetensorsDir, check, open_model, raise_problems
from qa_jax.hf.table import EMBED_TOKENS, LM_HEAD, TensorSpec, released_name, tensor_map

__all__ = [
    "EMBED_TOKENS",
    "LM_HEAD",
    "SafetensorsDir",
    "TensorSpec",
    "check",
    "in_memory_name",
    "is_peft",
    "load_params",
    "open_model",
    "raise_problems",
    "read_peft",
    "released_name",
    "tensor_map",
    "write_peft",
]
