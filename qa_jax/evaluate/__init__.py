"""How well it does: generated answers against references."""

from qa_jax.evaluate.evaluate import Prediction, Scores, evaluate, score
from qa_jax.evaluate.metrics import exact_match, normalize, word_error_rate

__all__ = [
    "Prediction",
    "Scores",
    "evaluate",
    "exact_match",
    "normalize",
    "score",
    "word_error_rate",
]
