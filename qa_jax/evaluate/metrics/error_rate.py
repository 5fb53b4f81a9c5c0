"""Word, character and mixed error rate: edits over the reference's tokens, of a whole corpus."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from qa_jax.errors import InputError
from qa_jax.evaluate.metrics.base import Metric, Rows, ratio
from qa_jax.evaluate.normalizers import Normalizer

Tokens = list[str]
Tokenizer = Callable[[str], Tokens]

_NO_SPACES = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
"""Kana and Chinese characters, whose words are not separated by spaces."""


def words(text: str) -> Tokens:
    """Separated by spaces."""
    return text.split()


def characters(text: str) -> Tokens:
    """All but spaces; composed, so that an accent is no character of its own."""
    return list("".join(unicodedata.normalize("NFC", text).split()))


def mixed(text: str) -> Tokens:
    """Characters of Chinese and Japanese, words of other scripts."""
    return re.findall(rf"{_NO_SPACES}|(?:(?!{_NO_SPACES})\S)+", text)


TOKENIZERS: dict[str, tuple[str, Tokenizer]] = {
    "wer": ("WER", words),
    "cer": ("CER", characters),
    "mer": ("MER", mixed),
}

ERROR_RATES: dict[str, Tokenizer] = {
    **{name: tokenize for name, (_, tokenize) in TOKENIZERS.items()},
    "wer_compounds": words,
}
"""All metrics of edits, and what they count."""


def error_rate(name: str, normalizer: Normalizer) -> Metric:
    """One of `TOKENIZERS` after a normalizer."""
    title, tokenize = TOKENIZERS[name]

    def statistics(rows: Rows) -> Float[np.ndarray, "rows 2"]:
        from rapidfuzz.distance import Levenshtein

        pairs = tokens_of(rows, normalizer, tokenize)
        counts = [(Levenshtein.distance(r, p), len(r)) for r, p in pairs]
        return np.array(counts, float).reshape(-1, 2)

    return Metric(title, statistics, ratio, higher_is_better=False)


def compound_error_rate(normalizer: Normalizer) -> Metric:
    """The Open ASR Leaderboard's word error rate: "white paper" and "whitepaper" are equal."""

    def statistics(rows: Rows) -> Float[np.ndarray, "rows 2"]:
        try:
            from kaldialign import edit_distance
        except ImportError:
            raise InputError("metric", "needs kaldialign", 'pip install "qa_jax[eval]"') from None
        counts = []
        for reference, prediction in tokens_of(rows, normalizer, words):
            found = edit_distance(tuple(reference), tuple(prediction), merge_compounds=True)
            counts.append((found["total"], found["ref_len"]))
        return np.array(counts, float).reshape(-1, 2)

    return Metric("WER, compounds merged", statistics, ratio, higher_is_better=False)


def tokens_of(
    rows: Rows, normalizer: Normalizer, tokenize: Tokenizer
) -> list[tuple[Tokens, Tokens]]:
    """The normalized tokens of each row's reference and prediction."""
    found = []
    for row in rows:
        language = str(row.get("language", ""))
        texts = (str(row["reference"]), str(row["prediction"]))
        reference, prediction = (tokenize(normalizer(text, language)) for text in texts)
        found.append((reference, prediction))
    return found


class Edit(NamedTuple):
    """A stretch of an alignment: "equal", "replace", "delete" or "insert", and the tokens there."""

    kind: str
    reference: Tokens
    prediction: Tokens


def align(reference: Sequence[str], prediction: Sequence[str]) -> list[Edit]:
    """Aligns two lists of tokens with as few edits as there can be."""
    from rapidfuzz.distance import Levenshtein

    return [
        Edit(
            op.tag,
            list(reference[op.src_start : op.src_end]),
            list(prediction[op.dest_start : op.dest_end]),
        )
        for op in Levenshtein.opcodes(reference, prediction)
    ]
