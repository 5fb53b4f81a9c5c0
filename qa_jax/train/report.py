"""What a person sees while a model learns: progress, the loss curve, throughput."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
        data = run.data
        console.print(
            f"{len(data.examples):,} records, {data.steps_per_epoch:,} steps an epoch, "
            f"{run.mesh.size} device(s); step {step:,} of {run.config.train.steps:,}"
        )
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=run.config.train.steps, completed=step)
        self._bar.start()

    def advance(self, number: int, waited: float) -> None:
        """One more step is done; `waited` seconds of it went to waiting for data."""
        self._bar.update(self._task, completed=number)
        self._steps += 1
        self._waited += waited

    def show(self, number: int, values: dict[str, float]) -> dict[str, float]:
        """Shows a logged step and returns the speeds since the one before."""
        now = time.perf_counter()
        elapsed = now - self._since
        speeds = {
            "steps_per_second": self._steps / elapsed,
            "audio_seconds_per_second": values["audio_seconds"] * self._steps / elapsed,
            "tokens_per_second": values["tokens"] * self._steps / elapsed,
            "data_wait": self._waited / elapsed,
        }
        self._since, self._steps, self._waited = now, 0, 0.0
        self.losses.append(values["loss"])
        self.line(
            number,
            {
                "loss": values["loss"],
                "accuracy": values["accuracy"],
                "steps/s": speeds["steps_per_second"],
                "audio s/s": speeds["audio_seconds_per_second"],
            },
            sparkline(self.losses),
        )
        return speeds

    def line(self, number: int, values: dict[str, float], tail: str = "") -> None:
        """One line of numbers."""
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
