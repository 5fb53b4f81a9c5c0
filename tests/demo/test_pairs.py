"""The third stage's pairs: a chosen and a rejected response, which differ in correctness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_jax.api import LoadedModel
from qa_jax.demo import corpus, pairs
from qa_jax.evaluate.metrics.error_rate import align


def test_pairs_of_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = corpus.plan_clips("train", 0, 0.05)
    rows = [
        corpus.chat_row(c.path, question, answer)
        for c in clips
        for _, question, answer in c.records
    ]
    texts = corpus.written_questions(0, 0.01)
    rows += [corpus.chat_row(None, *pair) for pair in texts]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answered(_: Any, manifest: Path, *, output: Path, **__: Any) -> None:
        asked = manifest.read_text().splitlines()
        answers = [pairs.NO_QUESTION, *["three plus four"] * (len(asked) - 1)]
        output.write_text("".join(json.dumps({"prediction": s}) + "\n" for s in answers))

    monkeypatch.setattr(pairs, "evaluate", answered)
    sizes = pairs.PairSizes(20, 20, 10, 20, 20)
    path = pairs.make_pairs(object.__new__(LoadedModel), tmp_path, "train", 0, sizes)
    made = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row["chosen"] != row["rejected"] for row in made)
    silent = [row for row in made if row["chosen"] == pairs.NO_QUESTION]
    # The one that was answered well already is left out.
    assert len(silent) == 19 and {row["rejected"] for row in silent} == {"three plus four"}
    by_path = {c.path: c for c in clips}
    written = [row for row in made if "audio" not in row["messages"][0]["content"][0]]
    assert {row["chosen"] for row in written} <= {answer for _, answer in texts}
    for row in made:
        if row in written:
            continue
        clip = by_path[row["messages"][0]["content"][0]["audio"]]
        known = {answer for _, _, answer in clip.records}
        assert row["chosen"] in known or row in silent
        assert row["rejected"] not in known
        if row in silent:
            assert clip.text is None
    assert len(made) == 19 + 3 * 20 + 10


def test_wrong_answers_are_wrong() -> None:
    rng = np.random.default_rng(0)
    for answer in ("the opposite of hot is cold", "the cow says moo", "a man", "music", "no"):
        worse = pairs._wrong_answer if " " in answer and "man" not in answer else pairs._wrong_label
        assert all(worse(answer, rng) != answer for _ in range(50))
    right = "turn on the light".split()
    wrong = [pairs._wrong_transcript(" ".join(right), rng).split() for _ in range(60)]
    assert {len(words) for words in wrong} == {3, 4, 5}
    for words in wrong:
        (edit,) = [x for x in align(right, words) if x.kind != "equal"]
        assert max(len(edit.reference), len(edit.prediction)) == 1
    assert all(pairs._wrong_transcript("stop", rng) not in ("", "stop") for _ in range(20))
