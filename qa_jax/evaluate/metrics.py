"""Metrics of generated text."""

from __future__ import annotations

import re
from collections.abc import Sequence


def normalize(text: str) -> list[str]:
    """Words in lower case without punctuation; apostrophes within words are kept."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def word_error_rate(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Corpus-level WER: all edits over all reference words."""
    from rapidfuzz.distance import Levenshtein

    pairs = [(normalize(r), normalize(p)) for r, p in zip(references, predictions, strict=True)]
    num_words = sum(len(r) for r, _ in pairs)
    edits = sum(Levenshtein.distance(r, p) for r, p in pairs)
    return edits / num_words if num_words else float(edits > 0)


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Fraction of predictions equal to their reference, ignoring surrounding whitespace."""
    equal = sum(r.strip() == p.strip() for r, p in zip(references, predictions, strict=True))
    return equal / len(references)
