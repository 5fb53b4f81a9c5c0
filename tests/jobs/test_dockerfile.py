"""The Dockerfile's CPU image: built where a container engine runs, else its steps are run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def engine() -> list[str] | None:
    """The command of a container engine that works here, or None."""
    for name, probe in (("docker", ["docker", "info"]), ("buildah", ["buildah", "info"])):
        if shutil.which(name) and not subprocess.run(probe, capture_output=True).returncode:
            return [name, "build"]
    return None


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if re.match(r"[A-Z]+ ", line)]  # type: ignore[misc]


@pytest.mark.jobs
def test_the_cpu_image(tmp_path: Path) -> None:
    found = engine()
    if found is not None:
        build = [*found, "--build-arg", "ACCELERATOR=cpu", "-t", "qa_jax_test", str(ROOT)]
        subprocess.run(build, check=True)
        return
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}",
        "ACCELERATOR": "cpu",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    environment.pop("PYTHONPATH", None)
    directory = tmp_path / "image"
    directory.mkdir()
    runs = 0
    for instruction, arguments in steps():
        if instruction == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, directory / target, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, directory / target)
        elif instruction == "RUN":
            runs += 1
            subprocess.run(["sh", "-ec", arguments], cwd=directory, env=environment, check=True)
    assert runs == 2
    # The image's entry point, away from the sources.
    done = subprocess.run(
        ["qa-jax", "convert", "table"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "audio_tower.conv1.weight" in done.stdout, done.stderr
