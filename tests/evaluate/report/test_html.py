"""What is in the page; tests/browser looks at it in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import soundfile

from qa_jax.evaluate import score
from qa_jax.evaluate.report import write_html
from tests.evaluate.layouts.data import Clips

pytestmark = pytest.mark.usefixtures("one_device")


def content_of(path: Path) -> dict[str, Any]:
    match = re.search(r'id="report">(.*?)</script>', path.read_text(), re.DOTALL)
    assert match
    return json.loads(match[1])


def rows(tmp_path: Path, clips: Clips) -> list[dict[str, Any]]:
    found = []
    for i, prediction in enumerate(("a b c d", "a x c", "a b </script> d", "")):
        clips.put(i, tmp_path / f"{i}.wav")
        found.append(
            {"id": f"{i}", "benchmark": "librispeech", "subset": "test-clean", "language": "en",
             "audio": [str(tmp_path / f"{i}.wav")], "prompt": "p", "reference": "a b c d",
             "prediction": prediction, "seconds": 1.0 + 4 * i, "speaker": "AB"[i % 2]}
        )  # fmt: skip
    found.append({**found[0], "id": "4", "error": "4.wav: broken"})
    found[-1].pop("prediction")
    return found


def test_content(tmp_path: Path, clips: Clips) -> None:
    page = tmp_path / "page.html"
    write_html(str(page), score(rows(tmp_path, clips)), {"rtfx": 3.0}, num_clips=3)
    found = content_of(page)
    assert found["title"] == "LibriSpeech" and found["run"] == {"rtfx": 3.0}
    own = {row["id"]: row for row in found["rows"]}
    assert own["1"]["edits"] == [
        ["equal", "a", "a"],
        ["replace", "b", "x"],
        ["equal", "c", "c"],
        ["delete", "d", ""],
    ]
    assert own["0"]["right"] and not own["1"]["right"] and own["1"]["value"] == 50
    assert own["4"]["error"] == "4.wav: broken"
    # The worst three have clips: the error's, the empty answer's, and one of two errors.
    assert {name for name, row in own.items() if row.get("clips")} == {"4", "3", "1"}
    sound = base64.b64decode(own["1"]["clips"][0].partition(",")[2])
    waveform, rate = soundfile.read(io.BytesIO(sound))
    assert rate == 16_000 and 0.5 < len(waveform) / rate < 2
    groups = {group["by"]: group for group in found["groups"]}
    lengths = [bar["name"] for bar in groups["length"]["bars"]]
    assert lengths == ["0 to 2 s", "2 to 5 s", "5 to 10 s", "10 to 20 s"]
    assert [bar["name"] for bar in groups["speaker"]["bars"]] == ["B", "A"]
    assert groups["speaker"]["bars"][0]["value"] == pytest.approx(100 * 6 / 8)
    assert "language" not in groups  # there is one


def test_the_page_needs_nothing_else(tmp_path: Path, clips: Clips) -> None:
    page = tmp_path / "page.html"
    write_html(str(page), score(rows(tmp_path, clips)), {}, num_clips=0)
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text
    assert text.count("</script>") == 2  # the answer's own is no tag


def test_answers_without_a_number_yet(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    waiting = {"id": "0", "benchmark": "voicebench", "subset": "commoneval", "prediction": "yes",
               "question": "?", "reference": "", "seconds": 1.0}  # fmt: skip
    write_html(str(page), score([waiting]), {})
    found = content_of(page)
    assert found["scores"][0]["value"] is None and found["groups"] == []
    assert "not judged yet" in found["scores"][0]["title"]
    assert found["rows"][0]["prediction"] == "yes" and "value" not in found["rows"][0]
