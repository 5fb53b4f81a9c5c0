"""Progress, throughput and the loss curve on the console, and the metrics files."""

from __future__ import annotations

import time

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qa_jax.config import to_dict
from qa_jax.data import TrainBatch
from qa_jax.model import param_specs
from qa_jax.model.flops import trained_fractions, training_flops, useful_flops
from qa_jax.parallel import is_main_process
from qa_jax.parallel.hardware import memory_in_use, peak_flops
from qa_jax.train.metrics import MetricsWriter
from qa_jax.train.run import TrainingRun
from qa_jax.trees import flatten_dict

_BARS = "▁▂▃▄▅▆▇█"


class Report:
    """A progress bar on a terminal, plain lines elsewhere; and a `MetricsWriter`.

    Args:
        console: where to print.
        run: the run.
        step: the number of steps done before.
    """

    def __init__(self, console: Console, run: TrainingRun, step: int) -> None:
        self.losses: list[float] = []
        self._run = run
        self._reset()
        trainable = flatten_dict(run.trainable_mask)
        self._fractions = trained_fractions(trainable, param_specs(run.models.policy))
        device = run.mesh.devices.flat[0]
        self._peak_flops = peak_flops(device)
        self._device = device if device.process_index == jax.process_index() else None
        self._active = is_main_process()
        train, data = run.config.train, run.data
        self._writer = MetricsWriter(
            train.output_dir, step, self._active, train.wandb_project, to_dict(run.config)
        )
        if self._active:
            console.print(
                f"{len(data.examples):,} records, {data.steps_per_epoch:,} steps per epoch, "
                f"{data.padding:.1%} padding, {run.mesh.size} device(s) in "
                f"{jax.process_count()} process(es); step {step:,} of {train.steps:,}"
            )
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal or not self._active,
        )
        self._task = self._bar.add_task("training", total=train.steps, completed=step)
        self._bar.start()

    def _reset(self) -> None:
        """Starts a new interval between log lines."""
        self._since = time.perf_counter()
        self._steps, self._data_wait = 0, 0.0
        self._flops = self._padded_tokens = self._real_tokens = self._audio_seconds = 0.0

    def count_batch(self, batch: TrainBatch, num_local_shards: int) -> None:
        """Counts a batch of this process, without its padding; other processes' shares are taken to
        be alike."""
        factor = self._run.data.num_batch_shards / num_local_shards
        ids = np.asarray(batch.segment_ids).reshape(-1, batch.segment_ids.shape[-1])
        rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)
        records = np.unique(np.stack([rows[ids > 0], ids[ids > 0]]), axis=1, return_counts=True)[1]
        frames = np.zeros(0, int) if batch.num_frames is None else np.asarray(batch.num_frames)
        targets = int(np.count_nonzero(batch.loss_weights))
        parts = useful_flops(
            self._run.model_config, records.tolist(), frames[frames > 0].tolist(), targets
        )
        self._flops += factor * training_flops(parts, self._fractions)
        self._padded_tokens += factor * ids.size
        self._real_tokens += factor * int(records.sum())
        self._audio_seconds += factor * 0.01 * int(frames.sum())

    def step(self, step: int, data_wait: float) -> None:
        """Counts a finished step; `data_wait` seconds of it were spent waiting for data."""
        self._bar.update(self._task, completed=step)
        self._steps += 1
        self._data_wait += data_wait

    def log(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Prints and writes a step's metrics, with the speeds since the last call; returns all."""
        speeds = self._speeds()
        self._reset()
        self.losses.append(values["loss"])
        shown: dict[str, float] = {
            "loss": values["loss"],
            **{k: values[k] for k in ("accuracy", "reward_accuracy") if k in values},
            "steps/s": speeds["steps_per_second"],
            "audio s/s": speeds["audio_seconds_per_second"],
            **{k: speeds[k] for k in ("mfu", "memory_gb") if k in speeds},
        }
        self._print_line(step, shown, sparkline(self.losses))
        values = values | speeds
        self._writer.write(step, values)
        return {"step": step, **values}

    def log_eval(self, step: int, values: dict[str, float]) -> None:
        """Prints and writes the metrics of an evaluation."""
        self._print_line(step, values)
        self._writer.write(step, values)

    def _speeds(self) -> dict[str, float]:
        elapsed = time.perf_counter() - self._since
        speeds = {
            "steps_per_second": self._steps / elapsed,
            "audio_seconds_per_second": self._audio_seconds / elapsed,
            "tokens_per_second": self._real_tokens / elapsed,
            "data_wait": self._data_wait / elapsed,
            "padding": 1 - self._real_tokens / max(self._padded_tokens, 1),
            "teraflops_per_second": self._flops / elapsed / 1e12,
        }
        if self._peak_flops is not None:
            speeds["mfu"] = self._flops / elapsed / (self._peak_flops * self._run.mesh.size)
        memory = None if self._device is None else memory_in_use(self._device)
        if memory is not None:
            speeds["memory_gb"] = memory / 1e9
        if self._run.data.bad_records:
            speeds["bad_records"] = len(self._run.data.bad_records)
        return speeds

    def _print_line(self, step: int, values: dict[str, float], tail: str = "") -> None:
        if not self._active:
            return
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._bar.console.print(f"step {step:>6}  {numbers}  {tail}", highlight=False)

    def upload(self) -> None:
        """Copies the metrics files into object storage, if the output is there."""
        self._writer.upload()

    def close(self) -> None:
        self._writer.close()
        self._bar.stop()


def sparkline(values: list[float], width: int = 24) -> str:
    """A row of bars for a series, its latest value last."""
    step = max(1, -(-len(values) // width))
    means = [
        sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)
    ]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((m - low) * scale)] for m in means)
