"""Whisper's normalizers, against the assertions that openai/whisper's own rules imply; the live
comparison with transformers is in tests/parity."""

from __future__ import annotations

import pytest

from qa_jax.evaluate.normalizers.whisper import normalize_whisper


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("he's like", "he is like"),
        ("She's been like", "she has been like"),
        ("10km", "10 km"),
        ("Mr. Park visited Prof. Kim Jr.", "mister park visited professor kim junior"),
        ("twenty-seven dollars and five cents", "$27.05"),
        ("nineteen eighties", "1980s"),
        ("three hundred and forty second", "342nd"),
        ("mobilisation of colour", "mobilization of color"),
        ("for that cause", "for that cause"),
        ("kinda dunno, 'cause", "kinda dunno 'cause".replace("'", "")),
        ("(laughs) [noise] uh yes", "yes"),
    ],
)
def test_english(text: str, expected: str) -> None:
    assert normalize_whisper(text, "en").split() == expected.split()


def test_other_languages_keep_their_words() -> None:
    assert normalize_whisper("L'été, C'EST (rires) là!", "fr").split() == "l été c est là".split()
