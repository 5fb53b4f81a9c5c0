"""Qwen2-Audio in JAX: speech, sound and music in, text out.

import qa_jax

qa = qa_jax.load("Qwen2-Audio-7B-Instruct", dtype="bfloat16")
qa.chat([{"role": "user", "content": [{"type": "audio", "audio": "question.wav"}]}])
"""

from qa_jax.api import LoadedModel, load
from qa_jax.errors import InputError

__version__ = "0.1.0"
__all__ = ["InputError", "LoadedModel", "load"]
