"""Scores of files of answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qa_jax.errors import InputError
from qa_jax.evaluate import compare_answers, read_answers, score


def row(i: int, prediction: str, reference: str = "a b c d", **fields: Any) -> dict[str, Any]:
    return {"id": str(i), "reference": reference, "prediction": prediction, **fields}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_without_a_recipe() -> None:
    scored = score([row(0, "a b c d"), row(1, "a b x d")])
    assert [(s.metric, s.value.value) for s in scored.scores] == [
        ("wer", 12.5),
        ("exact_match", 50),
    ]
    assert scored.scores[0].value.low < 12.5 < scored.scores[0].value.high
    chinese = score([row(0, "今天很好", "今天好")])
    assert [s.metric for s in chinese.scores] == ["mer", "exact_match"]
    assert chinese.scores[0].value.value == pytest.approx(100 / 3)
    assert score([row(0, "A B", "a b")], metrics=["cer"], normalizer="none").scores[0].value.value


def test_errors_have_no_part_and_are_told() -> None:
    scored = score([row(0, "a b c d"), {"id": "1", "reference": "a", "error": "x.wav: broken"}])
    assert (scored.scores[0].num_rows, scored.scores[0].num_errors) == (1, 1)
    assert scored.scores[0].value.value == 0
    with pytest.raises(InputError, match=r"none could be given; the first: x\.wav: broken"):
        score([{"id": "1", "reference": "a", "error": "x.wav: broken"}])


def test_a_recipes_subsets_and_what_others_reported() -> None:
    rows = [
        row(i, "a b c d" if i % 2 else "a b c x", subset=subset, benchmark="librispeech",
            language="en")
        for subset in ("test-clean", "dev-clean")
        for i in range(4)
    ]  # fmt: skip
    scored = score(rows)
    found = {(s.subset, s.metric): s for s in scored.scores}
    assert next(iter(found)) == ("dev-clean", "wer")  # in the recipe's order
    clean = found["test-clean", "wer"]
    assert clean.reported["report"] == 1.6 and clean.value.value == 12.5
    assert found["test-clean", "cer"].reported == {}
    assert found["all", "wer"].num_rows == 8 and found["all", "wer"].value.value == 12.5
    # Another normalizer, on the same answers.
    assert score(rows, normalizer="none").normalizer == "none"


def test_averages_are_of_values_not_of_rows() -> None:
    def judged(subset: str, text: str, count: int) -> list[dict[str, Any]]:
        other = " ".join(reversed(text.split()))
        judgements = [{"text": text, "swapped": False}, {"text": other, "swapped": True}]
        return [row(i, "x", subset=subset, benchmark="air_bench_chat", judgements=judgements)
                for i in range(count)]  # fmt: skip

    rows = [
        *judged("speech", "5 8", 5),
        *judged("sound", "5 6", 1),
        *judged("music", "5 4", 2),
        *judged("speech_and_sound", "5 2", 1),
        *judged("speech_and_music", "5 6", 3),
    ]
    found = {s.subset: s for s in score(rows).scores if s.metric == "judge_air_bench"}
    assert found["mixed audio"].value.value == 4
    assert found["average"].value.value == (8 + 6 + 4 + 4) / 4
    assert found["average"].num_rows == 12 and found["average"].reported == {"report": 6.93}
    # An average of what was not answered is none.
    assert "average" not in {s.subset for s in score(rows[:6]).scores}


def test_answers_that_nobody_knows() -> None:
    """Withheld answers, and judgements that are to come: the title says why there is no number."""
    rows = [row(0, "a cat", "", subset="sound", benchmark="mmau", choices=["a cat", "a dog"])]
    (own,) = score(rows).scores
    assert own.title == "accuracy (references unknown)" and math.isnan(own.value.value)
    rows = [
        row(0, "x", subset="commoneval", benchmark="voicebench"),
        row(1, "B", "B", subset="mmsu", benchmark="voicebench"),
        {"id": "2", "subset": "openbookqa", "benchmark": "voicebench", "error": "broken"},
    ]
    found = {own.subset: own for own in score(rows).scores}
    assert found["commoneval"].title == "judge's score of 5 (not judged yet)"
    assert found["mmsu"].value.value == 100
    assert found["openbookqa"].title == "accuracy (no answers)"
    assert found["openbookqa"].num_errors == 1
    # Silence has an empty reference, which is known.
    assert score([row(0, "", ""), row(1, "a", "a")]).scores[0].value.value == 0


def test_parts_are_joined_by_id(tmp_path: Path) -> None:
    write(tmp_path / "a-1.jsonl", [row(0, "a b c d"), row(1, "a b c d")])
    write(tmp_path / "a-2.jsonl", [row(2, "x")])
    rows = read_answers([tmp_path / "a-*.jsonl"])
    assert [r["id"] for r in rows] == ["0", "1", "2"]
    with pytest.raises(InputError, match="1 is answered twice"):
        read_answers([tmp_path / "a-1.jsonl", write(tmp_path / "b.jsonl", [row(1, "y")])])
    with pytest.raises(InputError, match=r"c\.jsonl: is not there"):
        read_answers([tmp_path / "c.jsonl"])
    (tmp_path / "d.jsonl").write_text('{"id": "0"}\n')
    with pytest.raises(InputError, match=r'd\.jsonl:1: has neither "prediction" nor "error"'):
        read_answers([tmp_path / "d.jsonl"])
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(InputError, match=r"e\.jsonl: contains no answers"):
        read_answers([tmp_path / "e.jsonl"])
    mixed = [row(0, "a", benchmark="mmau"), row(1, "a", benchmark="mmar")]
    with pytest.raises(InputError, match="of mmar, mmau; score one at a time"):
        score(mixed)


def test_two_models_on_the_items_that_both_answered() -> None:
    first = [row(i, "a b c d" if i < 50 else "a b x y") for i in range(100)]
    second = [row(i, "a b c d" if i < 80 else "a b x y") for i in range(90)]
    second += [{"id": "95", "reference": "a b c d", "error": "broken"}]
    (wer, exact) = compare_answers(first, second)
    assert wer.comparison.num_rows == 90
    assert wer.comparison.difference.value == pytest.approx(-100 * 30 * 2 / (90 * 4))
    assert wer.comparison.difference.high < 0 and wer.comparison.p_value < 0.01
    assert exact.comparison.difference.value == pytest.approx(100 * 30 / 90)
    with pytest.raises(InputError, match="0: has two references"):
        compare_answers(first, [row(0, "a", "another")])
    with pytest.raises(InputError, match="of no item that both have"):
        compare_answers(first, [row(1000, "a")])
