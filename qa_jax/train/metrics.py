"""Metrics files: JSONL and TensorBoard."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TextIO

from qa_jax.config import JsonDict
from qa_jax.paths import PathLike, as_path, is_remote, upload

FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes metrics to DIR/metrics.jsonl and DIR/tensorboard.

    On resuming at step N, lines of later steps are removed, since these steps are computed again.
    Only one process of a job is `active`. Into object storage they are uploaded with each
    checkpoint.
    """

    def __init__(self, directory: PathLike, resume_at: int, active: bool = True) -> None:
        from tensorboardX import SummaryWriter

        self.active = active
        if not active:
            return
        self._remote = as_path(directory) if is_remote(directory) else None
        # Objects in storage cannot be appended to: the files are local, and are uploaded.
        self._local = Path(tempfile.mkdtemp() if self._remote is not None else directory)
        self._local.mkdir(parents=True, exist_ok=True)
        kept = [m for m in read_metrics(as_path(directory) / FILE) if m["step"] <= resume_at]
        path = self._local / FILE
        path.write_text("".join(json.dumps(m) + "\n" for m in kept))
        self._file: TextIO = path.open("a")
        self._board = SummaryWriter(str(self._local / "tensorboard"), purge_step=resume_at + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a step; floats are written with all digits and read back to the same bits."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def upload(self) -> None:
        """Copies what was written into object storage, if the directory is there."""
        if self.active and self._remote is not None:
            self._board.flush()
            upload(self._local, self._remote)

    def close(self) -> None:
        if self.active:
            self._file.close()
            self._board.close()
            self.upload()


def read_metrics(path: PathLike) -> list[JsonDict]:
    """The lines of a metrics.jsonl; none if there is no file. An incomplete line, left by a crash,
    is ignored: its step was not finished."""
    path = as_path(path)
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
