"""The command line: exit codes, errors of one line, and light imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qa_jax.cli import main
from tests.cli.runs import refused


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
    assert "neither --audio, --prompt nor --manifest" in refused(capsys, *command[:3])
    with pytest.raises(SystemExit) as error:
        main(["generate", "--checkpoint", str(tiny_checkpoint), "--audios", "x.wav"])
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import qa_jax", ["torch", "transformers", "tensorboardX", "librosa", "grain"]),
        ("import qa_jax.cli, qa_jax.config", ["jax", "numpy", "flax", "orbax", "rich"]),
    ],
)
def test_imports_are_light(statement: str, absent: list[str]) -> None:
    code = f"import sys; {statement}; print([m for m in {absent} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_no_module_imports_torch() -> None:
    """Only the module of `verify --logits` imports torch or transformers."""
    root = Path(__file__).parents[2]
    paths = {*root.glob("qa_jax/**/*.py"), *root.glob("tools/**/*.py")}
    for path in paths - {root / "tools" / "convert_weights" / "logits.py"}:
        for line in path.read_text().splitlines():
            words = line.split()
            assert not (
                words[:1] in (["import"], ["from"])
                and words[1].startswith(("torch", "transformers"))
            ), path
