"""Whisper's normalizers against transformers' own, on texts of everything that they change."""

from __future__ import annotations

import json
import random
from importlib.resources import files

import pytest

from qa_jax.evaluate.normalizers.whisper import basic, english
from tests.evaluate.pairs_of_texts import LANGUAGES, pairs

_WORDS = (
    "one two three oh zero o ten eleven twenty thirty hundred thousand million first second third "
    "twenties and a half double triple point percent per cent dollars $ £ euros cents minus plus 5 "
    "10 3.5 1,000 2nd 20s $5.50 €7 ¢7 7% won't can't let's he's it'd they've y'all gonna 'cause "
    "cause kinda sorta dunno colour theatre centre uh um mhm mr mrs dr u.s. b.b.c. u. s. a. ... "
    "[noise] (laughs) <unk> café naïve — 1 ones"
).split()


def texts() -> list[str]:
    rng = random.Random("normalizers")
    found = [" ".join(rng.choices(_WORDS, k=rng.randint(1, 12))) for _ in range(10_000)]
    return found + [text for language in LANGUAGES for pair in pairs(language) for text in pair]


def test_english_and_basic() -> None:
    normalizers = pytest.importorskip("transformers.models.whisper.english_normalizer")
    spelling = files("whisper_normalizer").joinpath("normalizers/english.json").read_text()
    theirs = normalizers.EnglishTextNormalizer(json.loads(spelling))
    for text in texts():
        assert english()(text) == theirs(text), text
        assert basic()(text) == normalizers.BasicTextNormalizer()(text), text
