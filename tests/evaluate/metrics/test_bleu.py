"""BLEU of summed statistics equals sacrebleu's of the corpus, with the authors' tokenizers."""

from __future__ import annotations

import pytest
import sacrebleu

from qa_jax.errors import InputError
from qa_jax.evaluate.metrics import find_metric, interval
from qa_jax.evaluate.metrics.bleu import bleu_tokenizer
from tests.evaluate.pairs_of_texts import pairs


@pytest.mark.parametrize(("language", "tokenizer"), [("en", "13a"), ("fr", "13a"), ("zh", "zh")])
def test_it_is_sacrebleus(language: str, tokenizer: str) -> None:
    found = pairs(language)
    expected = sacrebleu.corpus_bleu(
        [answer for _, answer in found], [[r for r, _ in found]], tokenize=tokenizer
    ).score
    rows = [{"reference": r, "prediction": a, "language": language} for r, a in found]
    assert bleu_tokenizer(language) == tokenizer
    assert 20 < expected < 90
    assert find_metric("bleu").of(rows) == pytest.approx(expected, abs=1e-12)
    value, low, high = interval(find_metric("bleu"), rows[:200])
    assert low < value < high


def test_one_tokenizer_a_corpus() -> None:
    rows = [{"reference": "a", "prediction": "a", "language": code} for code in ("zh", "de")]
    with pytest.raises(InputError, match="rows of the tokenizers zh, 13a"):
        find_metric("bleu").of(rows)
