"""The loop: read, step, report, save; stopped at any moment, it goes on where it was."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from qa_jax import checkpoint
from qa_jax.config import RunConfig
from qa_jax.data import TrainBatch
from qa_jax.errors import InputError
from qa_jax.model import Params, bind
from qa_jax.parallel import BATCH_AXES, any_process, barrier, first_process, local_groups
from qa_jax.train.metrics import MetricsWriter, read_metrics
from qa_jax.train.objectives import Sums, next_token_loss
from qa_jax.train.report import Report
from qa_jax.train.setup import Run, abstract_state, initial_state, prepare
from qa_jax.train.step import Metrics, TrainState, jit_step, make_step


class Stopped(Exception):
    """The run was asked to stop; it has been saved."""


def train(config: RunConfig, console: Console | None = None) -> dict[str, float]:
    """Trains to `train.steps`, or goes on doing so, and returns the last step's metrics.

    SIGINT and SIGTERM, to any of its processes, save the step at hand and raise Stopped.
    """
    console = console or Console()
    run = prepare(config)
    with jax.set_mesh(run.mesh), _interruptible() as stop:
        return _Loop(run, console).run(stop)


class _Loop:
    def __init__(self, run: Run, console: Console) -> None:
        self.run_ = run
        self.config = run.config.train
        groups = run.data.groups
        self.local = local_groups(run.mesh)
        if first_process():
            checkpoint.create(self.config.output, run.model_config, run.text_source)
        barrier("created")
        self.steps = checkpoint.Checkpoints(
            self.config.output, self.config.keep, self.config.keep_every
        )
        self.data = run.data.iterate(self.local)
        self.state = self._start()
        self.writer = MetricsWriter(self.config.output, int(self.state.step), first_process())
        self.report = Report(console, run, int(self.state.step))
        step = make_step(run.model, run.optimizer, run.trained, run.learning_rate, groups)
        self.step = jit_step(step, self.state)
        bound = bind(run.model)

        def eval_step(params: Params, batch: TrainBatch) -> Sums:
            return next_token_loss(bound(params), jax.tree.map(lambda x: x[0], batch), groups)

        everywhere = NamedSharding(run.mesh, PartitionSpec())
        self.eval_step = jax.jit(eval_step, out_shardings=everywhere)

    def _start(self) -> TrainState:
        run = self.run_
        abstract = abstract_state(run.model_config, run.optimizer, run.mesh)
        found = self.steps.restore_latest(
            params=abstract.params, optimizer=abstract.optimizer, progress=None
        )
        if found is None:
            return initial_state(self.run_)
        latest, saved = found
        self.data.set_state(saved["progress"]["data"])
        step = jax.device_put(np.int32(latest), abstract.step.sharding)
        return TrainState(step, saved["params"], saved["optimizer"])

    def run(self, stop: list[int]) -> dict[str, float]:
        first, last = int(self.state.step), self.config.steps
        pending: tuple[int, Metrics, float] | None = None
        logged: dict[str, float] = {}
        for number in range(first + 1, last + 1):
            started = time.perf_counter()
            batch = next(self.data)
            waited = time.perf_counter() - started
            placed = self._place(batch)
            self._profile(number)
            with jax.transfer_guard("disallow"):
                self.state, metrics = self.step(self.state, placed)
            # While the device runs this step, the one before is read and reported.
            if pending is not None:
                logged = self._log(*pending) or logged
            pending = number, metrics, waited
            self.report.computed(batch, len(self.local))
            if self._due(number, self.config.eval_every) and self.run_.eval_data:
                self._evaluate(number)
            stopping = self._stopping(number, bool(stop))
            if self._due(number, self.config.save_every) or stopping or number == last:
                self._save(number)
            if stopping:
                break
        if pending is not None:
            logged = self._log(*pending) or logged
        stopped = int(self.state.step) < last
        evaluated = self._due(last, self.config.eval_every)
        if first < last and not stopped and not evaluated and self.run_.eval_data:
            self._evaluate(last)
        self.steps.close()
        self.writer.close()
        self.report.close()
        if stopped:
            raise Stopped(
                f"stopped at step {int(self.state.step)} and saved; the same command goes on"
            )
        return logged or _last_logged(self.config.output)

    def _stopping(self, number: int, asked: bool) -> bool:
        """Whether all processes stop here. Asking one another waits for the step at hand, so that
        several do it only where its numbers are read anyway."""
        if jax.process_count() == 1:
            return asked
        return self._due(number, self.config.log_every or 10) and any_process(asked)

    def _due(self, number: int, every: int) -> bool:
        return bool(every) and number % every == 0

    def _place(self, batch: TrainBatch) -> TrainBatch:
        """This process's rows and clips as its part of the whole batch."""
        place = NamedSharding(self.run_.mesh, PartitionSpec(None, BATCH_AXES))
        local, groups = self.local, self.run_.data.groups

        def put(x: np.ndarray) -> jax.Array:
            if len(local) == groups:
                return jax.device_put(x, place)
            each = x.shape[1] // len(local)

            def part(index: Any) -> np.ndarray:
                at = local.index((index[1].start or 0) // each) * each
                return x[:, at : at + each]

            shape = (x.shape[0], each * groups, *x.shape[2:])
            return jax.make_array_from_callback(shape, place, part)

        return jax.tree.map(put, batch)

    def _profile(self, number: int) -> None:
        """A trace of the steps that `train.profile` names, for TensorBoard or Perfetto."""
        first, last = self.config.profile or (0, -1)
        if number == first:
            jax.profiler.start_trace(f"{self.config.output}/profile")
        elif number == last + 1:
            jax.block_until_ready(self.state)
            jax.profiler.stop_trace()

    def _log(self, number: int, metrics: Metrics, waited: float) -> dict[str, float]:
        self.report.advance(number, waited)
        logged = self._due(number, self.config.log_every) or number == self.config.steps
        if not logged and bool(np.isfinite(metrics["loss"])):
            return {}
        values = {k: float(v) for k, v in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise InputError(
                f"step {number}",
                f"the loss is {values['loss']} on {_few(self.run_.data.sources(number - 1))}",
                "look at them, lower optimizer.peak_lr, or start from an earlier checkpoint",
            )
        values |= self.report.show(number, values)
        self.writer.write(number, values)
        return values

    def _evaluate(self, number: int) -> None:
        data = self.run_.eval_data
        assert data is not None
        loss = weight = correct = tokens = 0.0
        for i in range(data.steps_per_epoch):
            sums = self.eval_step(self.state.params, self._place(data.batch(i, self.local)))
            sums = jax.device_get(sums)
            loss, weight = loss + float(sums.loss), weight + float(sums.weight)
            correct, tokens = correct + float(sums.correct), tokens + float(sums.tokens)
        values = {"eval_loss": loss / weight, "eval_accuracy": correct / tokens}
        self.report.line(number, values)
        self.writer.write(number, values)

    def _save(self, number: int) -> None:
        self.steps.save(
            number,
            self.state.params,
            optimizer=self.state.optimizer,
            progress={"data": self.data.get_state()},
        )


def _few(sources: list[str], limit: int = 8) -> str:
    more = f" and {len(sources) - limit} more" if len(sources) > limit else ""
    return ", ".join(sources[:limit]) + more


def _last_logged(output: str) -> dict[str, Any]:
    rows = [r for r in read_metrics(f"{output}/metrics.jsonl") if "loss" in r]
    return rows[-1] if rows else {}


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """A list that holds the signal once SIGINT or SIGTERM has come; a second one kills as usual."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        if received:
            signal.default_int_handler(number, None)
        received.append(number)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
