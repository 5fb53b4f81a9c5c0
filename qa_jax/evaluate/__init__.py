"""Evaluation of generated answers, and of preference pairs."""

from qa_jax.evaluate.answers import answer, read_run
from qa_jax.evaluate.benchmarks import benchmark_names, load_benchmark, read_benchmark
from qa_jax.evaluate.evaluate import Scores, evaluate, read_labelled
from qa_jax.evaluate.in_training import AnswerScorer, answer_scorer
from qa_jax.evaluate.metrics import METRICS, find_metric, metric_of_texts
from qa_jax.evaluate.normalizers import NORMALIZERS, normalize
from qa_jax.evaluate.pairs import PairScores, evaluate_pairs
from qa_jax.evaluate.score import Scored, compare_answers, read_answers, score

__all__ = [
    "METRICS",
    "NORMALIZERS",
    "AnswerScorer",
    "PairScores",
    "Scored",
    "Scores",
    "answer",
    "answer_scorer",
    "benchmark_names",
    "compare_answers",
    "evaluate",
    "evaluate_pairs",
    "find_metric",
    "load_benchmark",
    "metric_of_texts",
    "normalize",
    "read_answers",
    "read_benchmark",
    "read_labelled",
    "read_run",
    "score",
]
