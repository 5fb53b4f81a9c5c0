"""Lower case without punctuation; for texts of no benchmark."""

from __future__ import annotations

import re


def normalize(text: str) -> list[str]:
    """Words in lower case without punctuation; apostrophes within words are kept."""
    return simplify(text).split()


def simplify(text: str) -> str:
    """The same, as a text."""
    return re.sub(r"[^\w\s']", " ", text.lower())
