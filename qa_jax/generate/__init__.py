"""How it answers: inputs in buckets, prefill and decode, sampling."""

from qa_jax.generate.engine import Engine
from qa_jax.generate.sampling import Sampling, from_generation_config

__all__ = ["Engine", "Sampling", "from_generation_config"]
