"""How far answers are from their references."""

from __future__ import annotations

import re
from collections.abc import Sequence


def normalize(text: str) -> list[str]:
    """Words in lower case without punctuation; apostrophes within words stay."""
    return re.sub(r"[^\w\s']", " ", text.lower()).split()


def word_error_rate(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Edits over reference words, over the whole set, so that long texts count for more."""
    from rapidfuzz.distance import Levenshtein

    pairs = [(normalize(r), normalize(p)) for r, p in zip(references, predictions, strict=True)]
    words = sum(len(r) for r, _ in pairs)
    edits = sum(Levenshtein.distance(r, p) for r, p in pairs)
    return edits / words if words else float(edits > 0)


def exact_match(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of answers equal to their reference, blanks at the ends aside."""
    same = sum(r.strip() == p.strip() for r, p in zip(references, predictions, strict=True))
    return same / len(references)
