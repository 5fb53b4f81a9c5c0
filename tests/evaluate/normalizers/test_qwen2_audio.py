"""The authors' normalizer: corpus WER of a thousand pairs a language, equal to their script's."""

from __future__ import annotations

import pytest

from qa_jax.evaluate.metrics import find_metric
from qa_jax.evaluate.normalizers.qwen2_audio import normalize_qwen2_audio
from tests.evaluate.pairs_of_texts import GOLDEN, LANGUAGES, NUM_PAIRS, pairs


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_authors_numbers(language: str) -> None:
    rows = [
        {"reference": reference, "prediction": answer, "language": language}
        for reference, answer in pairs(language)
    ]
    assert len(rows) == NUM_PAIRS
    assert find_metric("wer", "qwen2_audio").of(rows) == GOLDEN[language]


def test_tokens() -> None:
    assert normalize_qwen2_audio("<|en|>It's  a CAFÉ , No. 12 !", "en") == "it is a cafe no 12"
    assert normalize_qwen2_audio("<|zh|>今天 是 8月8日 。OK", "zh") == "今 天 是 八 月 八 日 o k"
    assert normalize_qwen2_audio("喺邊度呀？", "yue") == "喺 边 度 呀"
    assert normalize_qwen2_audio("", "en") == ""
