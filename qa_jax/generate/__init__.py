"""Generation: inputs in length buckets, prefill and decode, sampling."""

from qa_jax.generate.engine import Engine
from qa_jax.generate.inputs import ModelInputs, prepare_inputs
from qa_jax.generate.sampling import sample_token

__all__ = ["Engine", "ModelInputs", "prepare_inputs", "sample_token"]
