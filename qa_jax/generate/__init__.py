"""Generation: requests, the engine that answers them, sampling."""

from qa_jax.generate.engine import Engine
from qa_jax.generate.inputs import ModelInputs, prepare_inputs
from qa_jax.generate.requests import Answer, Clip, Request, TokenInfo, requests_of_batch
from qa_jax.generate.sampling import RowSettings, Sampled, sample_tokens

__all__ = [
    "Answer",
    "Clip",
    "Engine",
    "ModelInputs",
    "Request",
    "RowSettings",
    "Sampled",
    "TokenInfo",
    "prepare_inputs",
    "requests_of_batch",
    "sample_tokens",
]
