"""The Open ASR Leaderboard's normalizer: Whisper's with joined abbreviations, without ellipses."""

from __future__ import annotations

import pytest

from qa_jax.evaluate.normalizers.open_asr import normalize_open_asr
from qa_jax.evaluate.normalizers.whisper import normalize_whisper


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the B.B.C. said", "the bbc said"),
        ("in the U.S. today", "in the us today"),
        ("A. B. C. news", "a b c news"),
        ("A. B. C.", "a b c"),
        ("well... yes...", "well yes"),
        ("it's twenty dollars", "it is $20"),
        ("uh B.B.C.s", "bbcs"),
    ],
)
def test_english(text: str, expected: str) -> None:
    assert normalize_open_asr(text, "en").strip() == expected


def test_plain_sentences_are_as_whisper_has_them() -> None:
    text = "He won't visit the theatre at half past ten; it costs $5.50, I'm told."
    assert normalize_open_asr(text, "en") == normalize_whisper(text, "en")
