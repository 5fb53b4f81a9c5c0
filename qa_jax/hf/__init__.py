"""The border to Hugging Face: one table of tensors, a lazy reader, and loading onto devices.

Both conversion directions, their checks and the loader derive from `tensor_map`; nothing else in
the project knows a Hugging Face tensor name.
"""

from qa_jax.hf.load import load_params
from qa_jax.hf.peft import in_memory_name, is_peft, read_peft, write_peft
from qa_jax.hf.reader import SafetensorsDir, check, open_model, raise_problems
from qa_jax.hf.table import HEAD, TABLE, Tensor, released_name, tensor_map

__all__ = [
    "HEAD",
    "TABLE",
    "SafetensorsDir",
    "Tensor",
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
