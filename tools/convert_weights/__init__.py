"""Conversion between Hugging Face's released layout and qa_jax checkpoints, bit for bit.

A model is never loaded as a whole: tensors stream from one layout on disk into the other, over the
table in `qa_jax.hf`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convert_weights.adapters import adapter_to_hf, adapter_to_jax
    from convert_weights.description import describe
    from convert_weights.hf_to_jax import to_jax
    from convert_weights.jax_to_hf import to_hf
    from convert_weights.verification import print_report, verify

__all__ = [
    "adapter_to_hf",
    "adapter_to_jax",
    "describe",
    "print_report",
    "to_hf",
    "to_jax",
    "verify",
]

_MODULES = {
    "adapter_to_hf": "adapters",
    "adapter_to_jax": "adapters",
    "describe": "description",
    "print_report": "verification",
    "to_hf": "jax_to_hf",
    "to_jax": "hf_to_jax",
    "verify": "verification",
}


def __getattr__(name: str) -> object:
    # Imported on first use: the command line's help needs no JAX.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"convert_weights.{_MODULES[name]}"), name)
