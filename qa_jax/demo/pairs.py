"""Preference pairs about the demo's clips, for its third stage.

After the second stage, the model answers a question even to a sound without one. The chosen
completion says that nobody asked, and the rejected one is the model's own answer. Pairs of the
other tasks, with plausible wrong answers as rejected completions, preserve the other tasks: without
those of written questions about sounds, the model says there as well that nobody asked. Counting,
which it must do for sums that training never had, needs the most practice: it is rehearsed with
spoken and written questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qa_jax.api import LoadedModel
from qa_jax.config import JsonDict
from qa_jax.demo.corpus import TRANSCRIBE, WHAT, chat_row, write_manifest
from qa_jax.demo.run import MAX_NEW_TOKENS
from qa_jax.demo.synthetic import SOUNDS
from qa_jax.demo.texts import FACTS, OPPOSITES, commands
from qa_jax.evaluate import evaluate

NO_QUESTION = "nobody asked"


class PairSizes(NamedTuple):
    """Largest numbers of pairs of a split.

    Attributes:
        no_question: sounds without a question.
        spoken: voice chat.
        written: questions without audio, which only the training split has.
        transcripts: transcription.
        analysis: written questions about clips.
    """

    no_question: int
    spoken: int
    written: int
    transcripts: int
    analysis: int


SIZES = {
    "train": PairSizes(600, 1800, 1200, 1200, 600),
    "dev": PairSizes(120, 120, 0, 120, 120),
    "test": PairSizes(150, 150, 0, 150, 150),
}


def make_pairs(model: LoadedModel, data: Path, split: str, seed: int, sizes: PairSizes) -> Path:
    """Writes DATA/dpo_SPLIT.jsonl and returns its path.

    Args:
        model: its own answers to sounds without a question are the rejected completions.
        data: the demo's corpus.
        split: of the clips; their voices and sentences are in no other split.
        seed: of the random draws.
        sizes: how many pairs of each kind.
    """
    path = data / f"dpo_{split}.jsonl"
    rng = np.random.default_rng([seed, len(split)])
    rows = _rows(data, split)
    manifest = no_question_manifest(data, split)
    output = data / f".no_question_{split}.predictions.jsonl"
    output.unlink(missing_ok=True)  # of another model
    evaluate(model, manifest, output=output, max_new_tokens=MAX_NEW_TOKENS)
    answers = [json.loads(line)["prediction"] for line in output.read_text().splitlines()]
    output.unlink()
    pairs = [
        _pair(chat_row(clip, None, NO_QUESTION), answer or "yes")
        for clip, answer in list(zip(_sounds(rows), answers, strict=True))[: sizes.no_question]
        if answer != NO_QUESTION
    ]
    kinds = (
        (_is_spoken, _wrong_answer, sizes.spoken),
        (_is_written, _wrong_answer, sizes.written),
        (_is_transcript, _wrong_transcript, sizes.transcripts),
        (_is_analysis, _wrong_label, sizes.analysis),
    )
    for is_kind, reject, size in kinds:
        matching = [row for row in rows if is_kind(row)]
        for i in rng.permutation(len(matching))[:size]:
            pairs.append(_pair(matching[i], reject(_answer(matching[i]), rng)))
    partial = path.with_suffix(".partial")
    order = rng.permutation(len(pairs))
    write_manifest(partial, (pairs[i] for i in order))
    partial.replace(path)
    return path


def no_question_manifest(data: Path, split: str) -> Path:
    """A split's clips without speech, as voice chats with the answer that nobody asked."""
    path = data / f"{split}_no_question.jsonl"
    clips = _sounds(_rows(data, split))
    write_manifest(path, (chat_row(clip, None, NO_QUESTION) for clip in clips))
    return path


def _rows(data: Path, split: str) -> list[JsonDict]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").read_text().splitlines()]


def _sounds(rows: Sequence[JsonDict]) -> list[str]:
    """Clips of sounds other than speech."""
    found = {
        _parts(row)[0]["audio"]: None
        for row in rows
        if _parts(row)[0].get("audio")
        and _parts(row)[-1].get("text") == WHAT
        and _answer(row) != "speech"
    }
    return list(found)


def _parts(row: JsonDict) -> list[JsonDict]:
    return row["messages"][0]["content"]


def _answer(row: JsonDict) -> str:
    return row["messages"][1]["content"]


def _is_spoken(row: JsonDict) -> bool:
    return len(_parts(row)) == 1 and "audio" in _parts(row)[0]


def _is_written(row: JsonDict) -> bool:
    return "audio" not in _parts(row)[0]


def _is_transcript(row: JsonDict) -> bool:
    return _parts(row)[-1].get("text") == TRANSCRIBE


def _is_analysis(row: JsonDict) -> bool:
    return "audio" in _parts(row)[0] and len(_parts(row)) > 1 and not _is_transcript(row)


def _pair(row: JsonDict, rejected: str) -> JsonDict:
    return {"messages": row["messages"][:1], "chosen": _answer(row), "rejected": rejected}


def _wrong_answer(answer: str, rng: np.random.Generator) -> str:
    """The answer to another question, or the right one with a wrong last word."""
    words = answer.split()
    if answer in FACTS.values():
        others = [a for a in FACTS.values() if a != answer]
        return str(rng.choice(sorted(others)))
    ends = ["two", "five", "nine", "fifteen"] if " plus " in answer else sorted(OPPOSITES)
    wrong = [w for w in ends if w != words[-1]]
    return " ".join([*words[:-1], str(rng.choice(wrong))])


def _wrong_label(label: str, rng: np.random.Generator) -> str:
    """Another label of the same question, or that nobody asked."""
    for labels in (("a man", "a woman"), ("yes", "no"), (*SOUNDS, "speech")):
        if label in labels:
            return str(rng.choice([x for x in labels if x != label] + [NO_QUESTION]))
    raise ValueError(label)


_WORDS = sorted({word for sentence in commands() for word in sentence.split()})


def _wrong_transcript(text: str, rng: np.random.Generator) -> str:
    """A transcript with a wrong word, a word too many, or one too few."""
    words = text.split()
    edits = ["replace", "insert", "delete"] if len(words) > 1 else ["replace", "insert"]
    edit = rng.choice(edits)
    at = int(rng.integers(len(words) + (edit == "insert")))
    new = [] if edit == "delete" else [str(rng.choice([w for w in _WORDS if w not in words]))]
    return " ".join([*words[:at], *new, *words[at + (edit != "insert") :]])
