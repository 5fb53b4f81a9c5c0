"""Metrics: JSONL and TensorBoard files, and Weights & Biases."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, TextIO

from qa_jax.config import JsonDict
from qa_jax.errors import InputError
from qa_jax.paths import PathLike, as_path, is_remote, upload

FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes metrics to DIR/metrics.jsonl and DIR/tensorboard.

    On resuming at step N, lines of later steps are removed, since these steps are computed again.
    Only one process of a job is `active`. Into object storage they are uploaded with each
    checkpoint.

    Args:
        directory: the run's.
        resume_at: its last complete step.
        active: whether this process writes.
        wandb_project: of Weights & Biases, to log to as well; a resumed run goes on there, too.
        settings: the run's, which are shown there.

    Raises:
        InputError: without the wandb package.
    """

    def __init__(
        self,
        directory: PathLike,
        resume_at: int,
        active: bool = True,
        wandb_project: str = "",
        settings: JsonDict | None = None,
    ) -> None:
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
        self._wandb = None
        if wandb_project:
            self._wandb = _start_wandb(wandb_project, os.fspath(directory), self._local, settings)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a step; floats are written with all digits and read back to the same bits."""
        if not self.active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            # Not as W&B's own step, which refuses the steps that a resumed run repeats.
            self._wandb.log({"step": step, **values})

    def upload(self) -> None:
        """Copies what was written into object storage, if the directory is there."""
        if self.active and self._remote is not None:
            self._board.flush()
            upload(self._local, self._remote)

    def close(self) -> None:
        if self.active:
            self._file.close()
            if self._wandb is not None:
                self._wandb.finish()
            self._board.close()
            self.upload()


def _start_wandb(project: str, name: str, local: Path, settings: JsonDict | None) -> Any:
    try:
        import wandb
    except ImportError:
        raise InputError("train.wandb_project", "wandb is missing", "pip install wandb") from None
    # One id for an output directory, so that the run goes on when it is resumed.
    run_id = hashlib.sha256(name.encode()).hexdigest()[:16]
    run = wandb.init(
        project=project, id=run_id, name=name, resume="allow", dir=str(local), config=settings
    )
    run.define_metric("*", step_metric="step")
    return run


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
