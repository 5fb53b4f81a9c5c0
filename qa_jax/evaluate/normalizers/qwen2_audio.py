"""The normalizer of the authors' evaluation: `eval_audio/evaluate_asr.py` of QwenLM/Qwen2-Audio."""

from __future__ import annotations

import re
import unicodedata

from qa_jax.errors import InputError
from qa_jax.evaluate.normalizers.chinese import normalize_chinese
from qa_jax.evaluate.normalizers.whisper import basic, english

_CHARACTERS = ("zh", "yue")
"""Languages whose error rate is one of characters."""


def normalize_qwen2_audio(text: str, language: str) -> str:
    """A text's tokens as the authors count errors, joined by spaces: words, or the characters of
    Chinese and Cantonese.

    English passes through Whisper's English normalizer and then its basic one, Chinese through
    `normalize_chinese`, every other language through the basic one; Cantonese is written in
    simplified characters first. Tokens of punctuation alone are dropped.
    """
    text = re.sub(r"<\|.*?\|>", " ", text)
    text = re.sub(r" ?([!,.?;:])", r"\1", re.sub(r"\s+", " ", text)).lstrip(" ")
    if language == "zh":
        text = normalize_chinese(re.sub(r"\s+", "", text))
    else:
        if language == "yue":
            text = _simplified(text)
        if language == "en":
            text = english()(text)
        text = basic()(text)
    words = " ".join(word for word in text.split(" ") if not _is_punctuation(word)).lower().split()
    return " ".join("".join(words) if language in _CHARACTERS else words)


def _is_punctuation(word: str) -> bool:
    return all(unicodedata.category(c)[0] == "P" for c in word)


def _simplified(text: str) -> str:
    try:
        import zhconv
    except ImportError:
        raise InputError("normalizer", "needs zhconv", 'pip install "qa_jax[eval]"') from None
    converted: str = zhconv.convert(text, "zh-cn")
    return converted
