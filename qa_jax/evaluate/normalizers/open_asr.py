"""The normalizer of the Open ASR Leaderboard.

It is Whisper's English one, with joined abbreviations ("b.b.c." is "bbc") and without ellipses, as
of 2025. The leaderboard goes on changing its own; its script reads what `qa-jax score --export`
writes.
"""

from __future__ import annotations

import re

from qa_jax.evaluate.normalizers.whisper import basic, english

_LETTER = r"([a-z])"
_RULES: list[tuple[str, str]] = [
    (r"\.{3,}\s*$", ""),
    (r"\s*\.{3,}\s*", " "),
    (rf"\b{_LETTER}\.{_LETTER}\.{_LETTER}\.s\b", r"\1\2\3s"),
]
for _separator, _end in ((r"\.", r"\.?"), (r"\.\s+", r"\.")):
    for _count in (4, 3, 2):
        _RULES.append(
            (
                rf"\b{_separator.join([_LETTER] * _count)}{_end}\b",
                "".join(rf"\{i + 1}" for i in range(_count)),
            )
        )
_RULES.append((rf"\b{_LETTER}\.{_LETTER}\.{_LETTER}\.'s\b", r"\1\2\3s"))


def normalize_open_asr(text: str, language: str) -> str:
    """The leaderboard's English normalizer, and Whisper's basic one for other languages."""
    if language != "en":
        return basic()(text)
    # The leaderboard joins abbreviations between Whisper's first rules and its others.
    text = text.lower()
    for pattern, replacement in _RULES[:2]:
        text = re.sub(pattern, replacement, text)
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text)
    text = re.sub(r"\(([^)]+?)\)", "", text)
    text = re.sub(r"\b(hmm|mm|mhm|mmm|uh|um)\b", "", text)
    text = re.sub(r"\s+'", "'", text)
    for pattern, replacement in _RULES[2:]:
        text = re.sub(pattern, replacement, text)
    return english()(text)
