"""Metrics of answers, one file each, by the name that a recipe gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from qa_jax.errors import InputError, suggest
from qa_jax.evaluate.metrics import accuracy, choices
from qa_jax.evaluate.metrics.accuracy import accuracy_of
from qa_jax.evaluate.metrics.base import Metric, Rows
from qa_jax.evaluate.metrics.bleu import bleu
from qa_jax.evaluate.metrics.error_rate import TOKENIZERS, compound_error_rate, error_rate
from qa_jax.evaluate.metrics.f1 import macro_f1
from qa_jax.evaluate.metrics.intervals import Comparison, Interval, compare, interval
from qa_jax.evaluate.metrics.judged import JUDGE_RULES, judged
from qa_jax.evaluate.normalizers import Normalizer, find_normalizer

__all__ = ["METRICS", "Comparison", "Interval", "Metric", "Rows", "compare", "find_metric",
           "interval", "metric_of_texts"]  # fmt: skip


def _judged(name: str, _: Normalizer) -> Metric:
    return judged(name)


METRICS: dict[str, Callable[[Normalizer], Metric]] = {
    **{name: partial(error_rate, name) for name in TOKENIZERS},
    "wer_compounds": compound_error_rate,
    "bleu": lambda _: bleu(),
    "accuracy": lambda _: accuracy_of("accuracy", accuracy.is_exact),
    "exact_match": lambda _: accuracy_of("exact match", accuracy.is_equal),
    "lenient_accuracy": lambda _: accuracy_of("accuracy, any case", accuracy.is_lenient),
    "macro_f1": lambda _: macro_f1(),
    "air_bench": lambda _: accuracy_of("accuracy", choices.is_air_bench_correct),
    "mmau": lambda _: accuracy_of("accuracy", choices.is_mmau_correct),
    "letter": lambda _: accuracy_of("accuracy", choices.is_letter_correct),
    **{name: partial(_judged, name) for name in JUDGE_RULES},
}
"""Makers of metrics; those of texts use the normalizer."""


def find_metric(name: str, normalizer: str = "simple") -> Metric:
    """The metric of that name; raises InputError for an unknown one, or normalizer."""
    if name not in METRICS:
        raise InputError("metric", f"no {name!r}", suggest(name, METRICS))
    return METRICS[name](find_normalizer(normalizer))


def metric_of_texts(
    name: str, references: Sequence[str], predictions: Sequence[str], normalizer: str = "simple"
) -> float:
    """A metric of pairs of texts, as a fraction (BLEU: 0 to 100)."""
    pairs = zip(references, predictions, strict=True)
    rows = [{"reference": reference, "prediction": text} for reference, text in pairs]
    return find_metric(name, normalizer).of(rows)
