"""`qa-jax data check`, and training on the same manifest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from qa_jax.cli import main
from qa_jax.config import ModelConfig, to_dict


def chat(*parts: dict, answer: object = "yes") -> str:
    messages = [
        {"role": "user", "content": list(parts)},
        {"role": "assistant", "content": answer},
    ]
    return json.dumps({"messages": messages})


BROKEN = {
    '{"audio": "absent.wav", "text": "x"}': "no such file; check the path",
    '{"audio": "empty.wav", "text": "x"}': "not readable as audio",
    '{"audio": "silent_header.wav", "text": "x"}': "give no audio token; give more than 320",
    '{"audio": "text.wav", "text": "x"}': "not readable as audio",
    '{"audio": "long45.wav", "text": "x"}': "45.0 s is over the model's 30 s; split the clip",
    '{"audio": "nan.wav", "text": "x"}': "samples are NaN or infinite",
    '{"audio": 3, "text": "x"}': "",
    "{not json": "not JSON",
    "[1, 2]": "not a JSON object",
    '{"prompt": "what?"}': "has neither messages nor text; give",
    json.dumps({"messages": [{"role": "robot", "content": "hi"}]}): "unknown role 'robot'; use",
    json.dumps({"messages": [{"role": "user", "content": "hi"}]}): "no assistant turn to train on",
    '{"text": "' + "word " * 500 + '"}': "tokens are over data.max_tokens = 400; raise it",
    '{"text": "<|AUDIO|>"}': "clips are inserted before the prompt",
    chat({"type": "video", "video": "a.mp4"}): "part of type 'video'; use text or audio",
}


@pytest.fixture
def broken(audio_files: Path, tmp_path: Path) -> Path:
    for name in ("nan.wav", "text.wav", "0.wav", "1.wav"):
        (tmp_path / name).write_bytes((audio_files / name).read_bytes())
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent_header.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(tmp_path / "long45.wav", np.zeros(45 * 16_000, np.float32), 16_000)
    good = [chat({"audio": f"{i % 2}.wav"}, {"text": "is it so?"}) for i in range(170)]
    lines = [*good, *BROKEN, *BROKEN]
    order = np.random.default_rng(0).permutation(len(lines))
    path = tmp_path / "records.jsonl"
    path.write_text("".join(lines[i] + "\n" for i in order))
    return path


def test_check_names_every_bad_record(
    broken: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["data", "check", str(broken), "--tokenizer", str(tokenizer_dir)]
    assert main([*command, "--max-tokens", "400"]) == 2
    output = capsys.readouterr().out.splitlines()
    lines = broken.read_text().splitlines()
    problems = [line for line in output if line.startswith(f"{broken}:")]
    assert len(problems) == 30 and "170 usable records, 30 unusable" in output
    for problem in problems:
        number, _, cause = problem.removeprefix(f"{broken}:").partition(":")
        assert BROKEN[lines[int(number) - 1]] in cause, problem
        assert ";" in cause, f"no remedy: {problem}"
    assert any(line.startswith("170 clips, ") for line in output)
    assert any(line.startswith("tokens: min ") for line in output)


def test_training_skips_at_most_max_bad_records(
    broken: Path,
    tokenizer_dir: Path,
    tiny: ModelConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    raw = {
        "preset": "demo",
        "model": to_dict(tiny),
        "data": {"buckets": {104: 16, 204: 16}, "tokenizer": str(tokenizer_dir), "max_tokens": 400},
        "train": {"steps": 12, "save_every": 0},
    }
    recipe.write_text(yaml.safe_dump(raw))
    command = ["train", "--config", str(recipe), "--data.train", str(broken), "--mesh.fsdp", "1"]
    command += ["--mesh.data", "8"]
    for allowed, code in ((30, 0), (29, 2), (0, 2)):
        output = ["--train.output_dir", str(tmp_path / f"run{allowed}")]
        assert main([*command, *output, "--data.max_bad_records", str(allowed)]) == code
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert error.count("warning: skipped: ") == 30 or code == 2
        if code:
            assert error.splitlines()[-1].startswith("error: ")
