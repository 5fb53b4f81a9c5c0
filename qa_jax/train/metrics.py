"""Metrics files: JSONL and TensorBoard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TextIO

from qa_jax.config import JsonDict


class MetricsWriter:
    """Writes metrics to DIR/metrics.jsonl and DIR/tensorboard.

    On resuming at step N, lines of later steps are removed, since these steps are computed again.
    Only one process of a job is `active`.
    """

    def __init__(self, directory: str | Path, resume_at: int, active: bool = True) -> None:
        from tensorboardX import SummaryWriter

        self.active = active
        if not active:
            return
        self.path = Path(directory) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(m) for m in read_metrics(self.path) if m["step"] <= resume_at]
        self.path.write_text("".join(line + "\n" for line in kept))
        self._file: TextIO = self.path.open("a")
        self._board = SummaryWriter(str(Path(directory) / "tensorboard"), purge_step=resume_at + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a step; floats are written with all digits and read back to the same bits."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.active:
            self._file.close()
            self._board.close()


def read_metrics(path: str | Path) -> list[JsonDict]:
    """The lines of a metrics.jsonl; none if there is no file. An incomplete line, left by a crash,
    is ignored: its step was not finished."""
    if not Path(path).is_file():
        return []
    rows = []
    for line in Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
