"""Kills a command again and again while its output grows."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def kill_three_times(command: Sequence[str], output: Path, num_rows: int) -> None:
    """SIGKILL at a quarter, a half and three quarters of the rows: none is lost, and some are still
    missing then."""
    counts = []
    for kill in range(1, 4):
        process = subprocess.Popen([*command, str(output)])
        while not output.exists() or output.read_bytes().count(b"\n") < kill * num_rows // 4:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        counts.append(output.read_bytes().count(b"\n"))
    assert counts == sorted(counts) and counts[-1] < num_rows
