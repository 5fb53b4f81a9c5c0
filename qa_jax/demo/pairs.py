"""Better and worse answers about the demo's clips, for its third stage.

What the second stage teaches badly: to a sound in which nobody asks anything, it answers some
question all the same. The better answer says so, and the worse one is what the model itself said.
Pairs of the other tasks, with wrong answers in the right words, keep what it knows: without those
of written questions about sounds it told of nobody asking there, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qa_jax.api import LoadedModel
from qa_jax.data.synthetic import SOUNDS
from qa_jax.demo.corpus import TRANSCRIBE, WHAT, chat_row, write_manifest
from qa_jax.demo.run import MAX_NEW_TOKENS
from qa_jax.demo.texts import FACTS, OPPOSITES, commands
from qa_jax.evaluate import evaluate

NO_QUESTION = "nobody asked"


def make_pairs(qa: LoadedModel, data: Path, split: str, seed: int, most: int) -> Path:
    """Writes DATA/prefer_SPLIT.jsonl and returns its path.

    Args:
        qa: the model whose own answers to sounds without a question are the worse ones.
        data: the demo's corpus.
        split: of which clips; their voices and sentences are in no other split.
        seed: of what is drawn.
        most: pairs of each of the four kinds.
    """
    path = data / f"prefer_{split}.jsonl"
    rng = np.random.default_rng([seed, len(split)])
    rows = _rows(data, split)
    manifest = silent_manifest(data, split)
    said = data / f".unasked_{split}.predictions.jsonl"
    evaluate(qa, manifest, batch_size=32, output=said, max_new_tokens=MAX_NEW_TOKENS)
    answers = [json.loads(line)["prediction"] for line in said.read_text().splitlines()]
    said.unlink()
    pairs = [
        _pair(chat_row(clip, None, NO_QUESTION), answer or "yes")
        for clip, answer in list(zip(_sounds(rows), answers, strict=True))[:most]
        if answer != NO_QUESTION
    ]
    kinds = (
        (_is_chat, _wrong_answer),
        (_is_transcript, _misheard),
        (_is_analysis, _wrong_label),
    )
    for kind, worse in kinds:
        some = [row for row in rows if kind(row)]
        for i in rng.permutation(len(some))[:most]:
            pairs.append(_pair(some[i], worse(_answer(some[i]), rng)))
    partial = path.with_suffix(".partial")
    order = rng.permutation(len(pairs))
    write_manifest(partial, (pairs[i] for i in order))
    partial.replace(path)
    return path


def silent_manifest(data: Path, split: str) -> Path:
    """Clips of a split without speech, as voice chats whose answer is that nobody asked."""
    path = data / f"{split}_silent.jsonl"
    clips = _sounds(_rows(data, split))
    write_manifest(path, (chat_row(clip, None, NO_QUESTION) for clip in clips))
    return path


def _rows(data: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]


def _sounds(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Clips that are asked what they are, and are no speech."""
    found = {
        _parts(row)[0]["audio"]: None
        for row in rows
        if _parts(row)[0].get("audio")
        and _parts(row)[-1].get("text") == WHAT
        and _answer(row) != "speech"
    }
    return list(found)


def _parts(row: dict[str, Any]) -> list[dict[str, Any]]:
    return row["messages"][0]["content"]


def _answer(row: dict[str, Any]) -> str:
    return row["messages"][1]["content"]


def _is_chat(row: dict[str, Any]) -> bool:
    return len(_parts(row)) == 1 and "audio" in _parts(row)[0]


def _is_transcript(row: dict[str, Any]) -> bool:
    return _parts(row)[-1].get("text") == TRANSCRIBE


def _is_analysis(row: dict[str, Any]) -> bool:
    return "audio" in _parts(row)[0] and len(_parts(row)) > 1 and not _is_transcript(row)


def _pair(row: dict[str, Any], worse: str) -> dict[str, Any]:
    return {"messages": row["messages"][:1], "chosen": _answer(row), "rejected": worse}


def _wrong_answer(answer: str, rng: np.random.Generator) -> str:
    """The right words to another question, or a wrong end to this one."""
    words = answer.split()
    if answer in FACTS.values():
        others = [a for a in FACTS.values() if a != answer]
        return str(rng.choice(sorted(others)))
    ends = ["two", "five", "nine", "fifteen"] if " plus " in answer else sorted(OPPOSITES)
    wrong = [w for w in ends if w != words[-1]]
    return " ".join([*words[:-1], str(rng.choice(wrong))])


def _wrong_label(label: str, rng: np.random.Generator) -> str:
    """Another answer to such a question, or that nobody asked."""
    for labels in (("a man", "a woman"), ("yes", "no"), (*SOUNDS, "speech")):
        if label in labels:
            return str(rng.choice([x for x in labels if x != label] + [NO_QUESTION]))
    raise ValueError(label)


_WORDS = sorted({word for sentence in commands() for word in sentence.split()})


def _misheard(text: str, rng: np.random.Generator) -> str:
    """A transcript with one word that was not said."""
    words = text.split()
    at = int(rng.integers(len(words)))
    wrong = [w for w in _WORDS if w != words[at]]
    return " ".join([*words[:at], str(rng.choice(wrong)), *words[at + 1 :]])
