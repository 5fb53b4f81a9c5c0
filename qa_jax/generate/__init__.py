"""Generation: requests, the engine that answers them, sampling."""

from qa_jax.generate.compilation import num_compilations, use_persistent_cache
from qa_jax.generate.engine import Engine
from qa_jax.generate.inputs import ModelInputs, prepare_inputs
from qa_jax.generate.memory import Placement, choose_dtypes, default_mesh
from qa_jax.generate.offline import Summary, answer_questions, drop_torn_row, read_rows
from qa_jax.generate.requests import Answer, Clip, Request, TokenInfo, requests_of_batch
from qa_jax.generate.sampling import RowSettings, Sampled, sample_tokens

__all__ = [
    "Answer",
    "Clip",
    "Engine",
    "ModelInputs",
    "Placement",
    "Request",
    "RowSettings",
    "Sampled",
    "Summary",
    "TokenInfo",
    "answer_questions",
    "choose_dtypes",
    "default_mesh",
    "drop_torn_row",
    "num_compilations",
    "prepare_inputs",
    "read_rows",
    "requests_of_batch",
    "sample_tokens",
    "use_persistent_cache",
]
