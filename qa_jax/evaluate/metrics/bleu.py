"""Corpus BLEU by sacrebleu, as the authors evaluate translation: no normalizer, case matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from qa_jax.errors import InputError
from qa_jax.evaluate.metrics.base import Metric, Rows

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU

_ORDER = 4


def bleu_tokenizer(language: str) -> str:
    """sacrebleu's tokenizer for translations into a language: the authors' choice."""
    return {"zh": "zh", "ja": "ja-mecab"}.get(language, "13a")


def bleu() -> Metric:
    """BLEU of 0 to 100. Rows have the "language" that is translated into, which chooses the
    tokenizer, one for all."""
    return Metric("BLEU", _statistics, _value, is_percent=False)


def _statistics(rows: Rows) -> Float[np.ndarray, "rows statistics"]:
    """Lengths, then matching and all n-grams of each order."""
    scorers: dict[str, Any] = {}
    found = []
    for row in rows:
        tokenizer = bleu_tokenizer(str(row.get("language", "")))
        if tokenizer not in scorers:
            scorers[tokenizer] = _scorer(tokenizer)
        score = scorers[tokenizer].corpus_score([row["prediction"]], [[row["reference"]]])
        found.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    if len(scorers) > 1:
        raise InputError("BLEU", f"rows of the tokenizers {', '.join(scorers)}", "score one apart")
    return np.array(found, float).reshape(-1, 2 + 2 * _ORDER)


def _value(sums: Float[np.ndarray, "*samples statistics"]) -> Float[np.ndarray, "*samples"]:
    """The BLEU of summed statistics."""
    from sacrebleu.metrics import BLEU

    flat = sums.reshape(-1, sums.shape[-1])
    scores = [
        BLEU.compute_bleu(
            correct=row[2 : 2 + _ORDER].astype(int).tolist(),
            total=row[2 + _ORDER :].astype(int).tolist(),
            sys_len=int(row[0]),
            ref_len=int(row[1]),
            smooth_method="exp",
        ).score
        for row in flat
    ]
    return np.array(scores, float).reshape(sums.shape[:-1])


def _scorer(tokenizer: str) -> BLEU:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise InputError("BLEU", "needs sacrebleu", 'pip install "qa_jax[eval]"') from None
    return BLEU(tokenize=tokenizer, effective_order=False)
