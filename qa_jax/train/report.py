"""What a person sees while a model learns: progress, the loss curve, throughput."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qa_jax.config import HOP_LENGTH
from qa_jax.data import TrainBatch
from qa_jax.model import declarations, flatten
from qa_jax.model.flops import forward_parts, training_flops, what_moves
from qa_jax.parallel import first_process
from qa_jax.parallel.hardware import memory_in_use, peak_flops

if TYPE_CHECKING:
    from qa_jax.train.setup import Run

_BARS = "▁▂▃▄▅▆▇█"


class Report:
    """A progress bar on a terminal, plain lines elsewhere.

    Args:
        step: where the run starts or goes on.
    """

    def __init__(self, console: Console, run: Run, step: int) -> None:
        self.console = console
        self.losses: list[float] = []
        self._since = time.perf_counter()
        self._steps = 0
        self._waited = 0.0
        self._flops, self._slots, self._held = 0.0, 0, 0
        self._run = run
        self._moves = what_moves(flatten(run.trained), declarations(run.models.model))
        device = run.mesh.devices.flat[0]
        self._peak = peak_flops(device)
        self._device = device if device.process_index == jax.process_index() else None
        data = run.data
        self._quiet = not first_process()
        if not self._quiet:
            console.print(
                f"{len(data.examples):,} records, {data.steps_per_epoch:,} steps an epoch, "
                f"{data.padding:.1%} padding, {run.mesh.size} device(s) in "
                f"{jax.process_count()} process(es); step {step:,} of {run.config.train.steps:,}"
            )
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal or self._quiet,
        )
        self._task = self._bar.add_task("training", total=run.config.train.steps, completed=step)
        self._bar.start()

    def advance(self, number: int, waited: float) -> None:
        """One more step is done; `waited` seconds of it went to waiting for data."""
        self._bar.update(self._task, completed=number)
        self._steps += 1
        self._waited += waited

    def computed(self, batch: TrainBatch, local_groups: int) -> None:
        """A batch of this process was sent to the device; all groups' are of its shape."""
        accumulate, rows, tokens = batch.tokens.shape
        everywhere = self._run.data.groups * accumulate / local_groups
        clips, frames = 0, 0
        if batch.signal is not None:
            clips, frames = batch.signal.shape[1], batch.signal.shape[2] // HOP_LENGTH
        config = self._run.model_config
        parts = forward_parts(config, rows, tokens, clips, frames)
        self._flops += everywhere * training_flops(parts, self._moves)
        self._slots += batch.tokens.size
        self._held += int(np.count_nonzero(batch.segments))

    def show(self, number: int, values: dict[str, float]) -> dict[str, float]:
        """Shows a logged step and returns the speeds since the one before."""
        now = time.perf_counter()
        elapsed = now - self._since
        speeds = {
            "steps_per_second": self._steps / elapsed,
            "audio_seconds_per_second": values["audio_seconds"] * self._steps / elapsed,
            "tokens_per_second": values["tokens"] * self._steps / elapsed,
            "data_wait": self._waited / elapsed,
            "padding": 1 - self._held / max(self._slots, 1),
            "teraflops_per_second": self._flops / elapsed / 1e12,
        }
        if self._peak is not None:
            speeds["mfu"] = self._flops / elapsed / (self._peak * self._run.mesh.size)
        memory = None if self._device is None else memory_in_use(self._device)
        if memory is not None:
            speeds["memory_gb"] = memory / 1e9
        if self._run.data.unusable:
            speeds["unusable_records"] = len(self._run.data.unusable)
        self._since, self._steps, self._waited = now, 0, 0.0
        self._flops, self._slots, self._held = 0.0, 0, 0
        self.losses.append(values["loss"])
        self.line(
            number,
            {
                "loss": values["loss"],
                **{k: values[k] for k in ("accuracy", "reward_accuracy") if k in values},
                "steps/s": speeds["steps_per_second"],
                "audio s/s": speeds["audio_seconds_per_second"],
                **{k: speeds[k] for k in ("mfu", "memory_gb") if k in speeds},
            },
            sparkline(self.losses),
        )
        return speeds

    def line(self, number: int, values: dict[str, float], tail: str = "") -> None:
        """One line of numbers."""
        if self._quiet:
            return
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._bar.console.print(f"step {number:>6}  {numbers}  {tail}", highlight=False)

    def close(self) -> None:
        self._bar.stop()


def sparkline(values: list[float], width: int = 24) -> str:
    """The course of a number as a row of bars, its latest value last."""
    step = max(1, -(-len(values) // width))
    means = [
        sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)
    ]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((m - low) * scale)] for m in means)
