"""The command line: what it prints, and one line with exit code 2 for every bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from qa_jax.cli import main
from qa_jax.config import ModelConfig, to_dict


def refused(capsys: pytest.CaptureFixture, *argv: object) -> str:
    """Runs a command that must fail; returns its one line of error."""
    code = main([str(a) for a in argv])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short.wav", "give no audio token"),
        ("long.wav", "over the model's 30 s; split the clip"),
        ("nan.wav", "samples are NaN"),
        ("text.wav", "not readable as audio"),
        ("absent.wav", "no such file; check the path"),
        (
            "samples.npy",
            "samples without their sampling rate; pass sampling_rate (--sampling-rate)",
        ),
    ],
)
def test_bad_sound(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, sounds: Path, name: str, message: str
) -> None:
    path = sounds / name
    error = refused(capsys, "generate", "--checkpoint", tiny_checkpoint, "--audio", path)
    assert str(path) in error and message in error


def test_bad_rate_and_counts(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, sounds: Path, tmp_path: Path
) -> None:
    command = ["generate", "--checkpoint", tiny_checkpoint]
    error = refused(capsys, *command, "--audio", sounds / "samples.npy", "--sampling-rate", "-1")
    assert "sampling rate -1 is not a rate in Hz" in error
    error = refused(
        capsys, *command, "--raw", "--audio", sounds / "0.wav", "--prompt", "<|AUDIO|> what"
    )
    assert "2 <|AUDIO|> placeholder(s) for 1 clip(s); write one" in error
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"messages": [{"role": "user", "content": "<|AUDIO|>"}]}\n')
    error = refused(capsys, "evaluate", "--checkpoint", tiny_checkpoint, manifest)
    assert f"{manifest}:1: message 1: text contains <|AUDIO|>" in error


def test_bad_checkpoints_and_settings(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    error = refused(capsys, "generate", "--checkpoint", tmp_path, "--prompt", "hi")
    assert f"{tmp_path}: contains neither" in error
    error = refused(capsys, "convert", "to-jax", tmp_path, tmp_path / "x")
    assert "config.json: not found" in error
    config = tmp_path / "c.yaml"
    config.write_text("train: {stepz: 3}\n")
    assert "did you mean train.steps?" in refused(capsys, "train", "--config", config)
    config.write_text("preset: demo\n")
    assert "data.train: no manifest named" in refused(capsys, "train", "--config", config)
    command = ["generate", "--checkpoint", tiny_checkpoint, "--prompt", "hi", "--top-p", "3"]
    assert "top_p: 3.0 is out of range" in refused(capsys, *command)
    assert "neither --audio nor --prompt" in refused(capsys, *command[:3])
    with pytest.raises(SystemExit) as error:
        main(["generate", "--checkpoint", str(tiny_checkpoint), "--audios", "x.wav"])
    assert error.value.code == 2


def test_generate(capsys: pytest.CaptureFixture, tiny_checkpoint: Path, sounds: Path) -> None:
    command = ["generate", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "4"]
    for more in (
        ["--audio", str(sounds / "0.wav")],
        ["--audio", str(sounds / "0.wav"), "--audio", str(sounds / "1.wav"), "--prompt", "what"],
        ["--raw", "--audio", str(sounds / "0.wav"), "--prompt", "what"],
        ["--audio", str(sounds / "samples.npy"), "--sampling-rate", "16000"],
        ["--audio", str(sounds / "long.wav"), "--long-audio", "truncate"],
        ["--prompt", "what is three"],
    ):
        assert main([*command, *more]) == 0
        assert capsys.readouterr().out.endswith("\n")


def test_chat(
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Path,
    sounds: Path,
) -> None:
    lines = iter(
        [
            f":audio {sounds / '0.wav'}",
            "",
            "what",
            f":audio {sounds / 'nan.wav'}",
            ":reset",
            ":quit",
        ]
    )
    asked = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return next(lines)

    monkeypatch.setattr("builtins.input", answer)
    assert main(["chat", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "3"]) == 0
    assert asked[:3] == ["you> ", "instruction> ", "you> "]
    assert "nan.wav: 1 samples are NaN" in capsys.readouterr().out


def test_tokenizer_train_evaluate(
    capsys: pytest.CaptureFixture, tiny: ModelConfig, manifest: Path, tmp_path: Path
) -> None:
    """The three commands one after the other, each reading what the one before wrote."""
    text = tmp_path / "text.txt"
    text.write_text("three plus four is seven\nturn on the light\n" * 20)
    assert (
        main(["tokenizer", str(text), "--vocab-size", "300", "--output", str(tmp_path / "t")]) == 0
    )
    config = tmp_path / "config.yaml"
    raw = {
        "preset": "demo",
        "model": to_dict(tiny),
        "data": {"buckets": {0: 8, 104: 8, 204: 8}, "tokenizer": str(tmp_path / "t")},
        "train": {"output_dir": str(tmp_path / "run")},
    }
    config.write_text(yaml.safe_dump(raw))
    command = [
        "train",
        "--config",
        str(config),
        "--data.train",
        str(manifest),
        "--train.steps",
        "2",
    ]
    assert main(command) == 0
    assert main(command) == 0, "nothing is left to do the second time"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    capsys.readouterr()
    arguments = ["--checkpoint", str(tmp_path / "run"), "--max-new-tokens", "4"]
    assert main(["evaluate", *arguments, str(manifest)]) == 0
    assert "12 records  word error rate" in capsys.readouterr().out
    rows = [
        json.loads(x) for x in manifest.with_suffix(".predictions.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 12 and rows[1]["reference"] == "a man"
    assert rows[0]["source"].endswith("manifest.jsonl:1")


def test_importing_is_quick_and_light() -> None:
    code = (
        "import time; t = time.perf_counter(); import qa_jax, sys; t = time.perf_counter() - t;"
        "print(t, [m for m in ('torch', 'transformers', 'tensorboard', 'tensorboardX', 'librosa',"
        " 'grain', 'tensorflow') if m in sys.modules])"
    )
    runs = []
    for _ in range(3):
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seconds, _, modules = out.stdout.strip().partition(" ")
        assert modules == "[]"
        runs.append(float(seconds))
    assert min(runs) < 3


def test_the_package_needs_no_torch() -> None:
    """Only the comparison that `verify --logits` asks for imports torch or transformers."""
    root = Path(__file__).parents[1]
    paths = {*root.glob("qa_jax/**/*.py"), *root.glob("tools/**/*.py")}
    for path in paths - {root / "tools" / "convert_weights" / "logits.py"}:
        for line in path.read_text().splitlines():
            words = line.split()
            assert not (
                words[:1] in (["import"], ["from"])
                and words[1].startswith(("torch", "transformers"))
            ), path


def test_long_audio_of_a_module(sounds: Path, tiny_checkpoint: Path) -> None:
    """`python -m qa_jax.cli` is the same command, and warns in one line."""
    command = [sys.executable, "-m", "qa_jax.cli", "generate", "--checkpoint", str(tiny_checkpoint)]
    command += ["--audio", str(sounds / "long.wav"), "--long-audio", "truncate"]
    done = subprocess.run(
        [*command, "--max-new-tokens", "2"], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0
    assert "warning: " in done.stderr and "truncated from 31.0 s to 30 s" in done.stderr
