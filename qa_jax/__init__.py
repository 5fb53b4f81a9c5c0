"""Qwen2-Audio in JAX: speech, sound and music in, text out.

import qa_jax

model = qa_jax.load("Qwen2-Audio-7B-Instruct", dtype="bfloat16")
model.chat([{"role": "user", "content": [{"type": "audio", "audio": "question.wav"}]}])
"""

from typing import TYPE_CHECKING

from qa_jax.errors import InputError

if TYPE_CHECKING:
    from qa_jax.api import LoadedModel, load

__version__ = "0.1.0"
__all__ = ["InputError", "LoadedModel", "load"]


def __getattr__(name: str) -> object:
    # Imported on first use: settings and the command line's help need no JAX.
    if name in ("LoadedModel", "load"):
        from qa_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
