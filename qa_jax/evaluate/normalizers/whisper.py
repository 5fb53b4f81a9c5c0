"""Whisper's normalizers (Radford et al. 2022, appendix C), of the package whisper-normalizer."""

from __future__ import annotations

import functools
from collections.abc import Callable

from qa_jax.errors import InputError

_ADDED = (r"\bkinda\b", r"\bsorta\b", r"\bdunno\b", r"\bcause\b")
"""Rules that the package has, but neither openai/whisper nor transformers: "for that cause" became
"for that because"."""


def normalize_whisper(text: str, language: str) -> str:
    """Whisper's English normalizer for "en", its basic one for other languages."""
    return (english if language == "en" else basic)()(text)


@functools.cache
def english() -> Callable[[str], str]:
    """Whisper's English normalizer: numbers as digits, American spelling, no contractions."""
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise _missing() from None
    normalizer = EnglishTextNormalizer()
    for rule in _ADDED:
        normalizer.replacers.pop(rule, None)
    found: Callable[[str], str] = normalizer
    return found


@functools.cache
def basic() -> Callable[[str], str]:
    """Whisper's normalizer for other languages: lower case without symbols or what is bracketed."""
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
    except ImportError:
        raise _missing() from None
    found: Callable[[str], str] = BasicTextNormalizer()
    return found


def _missing() -> InputError:
    return InputError("normalizer", "needs whisper-normalizer", 'pip install "qa_jax[eval]"')
