"""Multiple choice: which choice an answer names, by the rules of each benchmark's own script."""

from __future__ import annotations

import re

from qa_jax.config import JsonDict
from qa_jax.errors import InputError

LETTERS = "ABCDEFGHIJ"


def is_air_bench_correct(row: JsonDict) -> bool | None:
    """AIR-Bench's rule, of `score_foundation.py`: the first letter of the answer, if it is A to D
    ("Because" is B), else the last but one ("The answer is A."); None, which is not counted, if
    neither is."""
    letter = air_bench_letter(row["prediction"])
    return None if letter is None else letter == letter_of(row)


def air_bench_letter(prediction: str) -> str | None:
    """The letter that AIR-Bench reads in an answer."""
    text = prediction.strip().replace("\n", "")
    if not text or text == "None":
        return None
    if text[0] in "ABCD":
        return text[0]
    return text[-2] if len(text) > 1 and text[-2] in "ABCD" else None


def letter_of(row: JsonDict) -> str:
    """The letter of the choice that is the reference; raises InputError if none is."""
    choices = row["choices"]
    if row["reference"] not in choices:
        raise InputError(row.get("id", "row"), "the reference is none of its choices")
    return LETTERS[choices.index(row["reference"])]


def is_mmau_correct(row: JsonDict) -> bool:
    """The rule of MMAU's and MMAR's `evaluation.py`: all words of the right choice are in the
    answer, and no word is that only wrong choices have."""
    answer, reference = _words(row["prediction"]), _words(row["reference"])
    wrong: set[str] = set()
    for choice in row["choices"]:
        if _words(choice) != reference:
            wrong |= _words(choice) - reference
    return bool(answer) and reference <= answer and not answer & wrong


def is_letter_correct(row: JsonDict) -> bool | None:
    """Whether the answer names the reference's letter; None, which is not counted, if it names
    none. The rule is ours: the one letter that stands alone, or that follows "answer is"."""
    letter = named_letter(row["prediction"])
    return None if letter is None else letter == row["reference"].strip().upper()


def named_letter(prediction: str) -> str | None:
    """The choice that an answer names by its letter, if it is one."""
    said = re.findall(r"(?i:answer|option|choice)(?i:\s+is|:)?\W*([A-J])\b", prediction)
    found = said or re.findall(r"(?<![\w'])([A-J])(?![\w'])", prediction)
    return found[-1] if len(set(found)) == 1 else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"\b\w+\b", text.lower()))
