"""`qa-jax serve` as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from qa_jax.cli import main
from tests.cli.runs import refused
from tests.serve.server import user

SERVE = (sys.executable, "-m", "qa_jax.cli", "serve", "--port", "0", "--no-warm-up")


def test_a_signal_drains(tiny_checkpoint: Path) -> None:
    """A stream that has begun is finished; the exit code is 0."""
    command = [*SERVE, "--checkpoint", str(tiny_checkpoint), "--name", "tiny"]
    environment = {**os.environ, "QA_JAX_API_KEYS": "one,two"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        url = next(m[1] for m in (re.search(r"listening on (\S+)", x) for x in lines) if m)
        next(line for line in lines if line == "ready\n")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="two", max_retries=0, timeout=120)
        stream = client.chat.completions.create(
            model="tiny",
            messages=[user("hello")],  # type: ignore[list-item]
            max_tokens=200,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        server.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 200
        assert server.wait(60) == 0
        assert "Traceback" not in server.stderr.read()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached by others, and there is no key"),
        (["--max-queue", "0"], "max_queue: 0 is too small"),
        (["--api-key-file", "absent"], "absent: cannot be read"),
        (["--adapters", "a"], "write NAME=DIR"),
    ],
)
def test_what_is_refused_before_loading(
    capsys: pytest.CaptureFixture, tiny_checkpoint: Path, options: list[str], told: str
) -> None:
    assert told in refused(capsys, "serve", "--checkpoint", tiny_checkpoint, *options)


def test_every_setting_has_an_option(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = capsys.readouterr().out
    for option in ("--max-body-mib", "--request-seconds", "--no-page", "--window-seconds"):
        assert option in told
