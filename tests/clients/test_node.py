"""OpenAI's client for Node. QA_JAX_NODE_MODULES=DIR has it: npm install --prefix DIR openai."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile

import qa_jax
from tests.conftest import make_waveform
from tests.serve.server import KEY, running, wait_until

MODULES = Path(os.environ.get("QA_JAX_NODE_MODULES", "build/node")) / "node_modules"
pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and (MODULES / "openai").is_dir()),
    reason="Node's openai is not installed: npm install --prefix build/node openai",
)


def test_the_suite(tiny_checkpoint: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", make_waveform(1.3), 16_000)
    shutil.copy(Path(__file__).with_name("suite.mjs"), tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES.resolve())
    model = qa_jax.load(tiny_checkpoint, num_slots=4, capacity=448)
    with running(model, window_seconds=1.0, max_new_tokens=300) as server:
        command = ["node", "suite.mjs", server.url, KEY, "clip.wav"]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert found.returncode == 0, found.stderr
        assert int(found.stdout) >= 60
        runner = server.app.service.models["tiny"].runner
        wait_until(lambda: runner.num_running == 0)
