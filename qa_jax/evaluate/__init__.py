"""Evaluation of generated answers, and of preference pairs."""

from qa_jax.evaluate.evaluate import Scores, evaluate
from qa_jax.evaluate.in_training import AnswerScorer, answer_scorer
from qa_jax.evaluate.metrics import exact_match, normalize, word_error_rate
from qa_jax.evaluate.pairs import PairScores, evaluate_pairs

__all__ = [
    "AnswerScorer",
    "PairScores",
    "Scores",
    "answer_scorer",
    "evaluate",
    "evaluate_pairs",
    "exact_match",
    "normalize",
    "word_error_rate",
]
