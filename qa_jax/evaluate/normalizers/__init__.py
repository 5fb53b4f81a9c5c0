"""Text normalizers, by the name that a benchmark's recipe gives: (text, language) -> text.

Which one is used changes a word error rate by more than models differ: the same answers give
another number under each.
"""

from __future__ import annotations

from collections.abc import Callable

from qa_jax.errors import InputError, suggest
from qa_jax.evaluate.normalizers.chinese import normalize_chinese
from qa_jax.evaluate.normalizers.open_asr import normalize_open_asr
from qa_jax.evaluate.normalizers.qwen2_audio import normalize_qwen2_audio
from qa_jax.evaluate.normalizers.simple import normalize, simplify
from qa_jax.evaluate.normalizers.whisper import normalize_whisper

__all__ = ["NORMALIZERS", "Normalizer", "find_normalizer", "normalize", "normalize_chinese"]

Normalizer = Callable[[str, str], str]
"""Of a text and its language's ISO code, such as "en", "zh", "yue"; "" if it is not known."""

NORMALIZERS: dict[str, Normalizer] = {
    "none": lambda text, language: text,
    "simple": lambda text, language: simplify(text),
    "whisper": normalize_whisper,
    "open_asr": normalize_open_asr,
    "qwen2_audio": normalize_qwen2_audio,
}


def find_normalizer(name: str) -> Normalizer:
    """The normalizer of that name; raises InputError for an unknown one."""
    if name not in NORMALIZERS:
        raise InputError("normalizer", f"no {name!r}", suggest(name, NORMALIZERS))
    return NORMALIZERS[name]
