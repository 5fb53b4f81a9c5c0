"""The loop: read, step, report, save; stopped at any moment, it goes on where it was."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from qa_jax import checkpoint, weights
from qa_jax.config import RunConfig
from qa_jax.data import TrainBatch
from qa_jax.errors import InputError
from qa_jax.model import Params, flatten, is_adapter_path, join, nest, split
from qa_jax.parallel import BATCH_AXES, any_process, barrier, first_process, local_groups
from qa_jax.train.metrics import MetricsWriter, read_metrics
from qa_jax.train.objectives import Sums
from qa_jax.train.reference import store_reference
from qa_jax.train.report import Report
from qa_jax.train.setup import (
    Run,
    abstract_adapter,
    abstract_state,
    adapter_card,
    held_base,
    initial_state,
    make_objective,
    make_run_step,
    prepare,
)
from qa_jax.train.step import Metrics, TrainState, jit_step


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
        self.config, self.console = run.config.train, console
        groups = run.data.groups
        self.local = local_groups(run.mesh)
        if first_process():
            if run.models.adapted:
                card = adapter_card(run.config, run.model_config, run.models)
                checkpoint.create_adapter(self.config.output, card, run.text_source)
            else:
                checkpoint.create(self.config.output, run.model_config, run.text_source)
        barrier("created")
        self.steps = checkpoint.Checkpoints(
            self.config.output, self.config.keep, self.config.keep_every
        )
        self.state, position = self._start()
        self.stay = self._reference()
        # Last, for it reads ahead: batches hold what the reference has put into the data.
        self.data = run.data.iterate(self.local)
        if position is not None:
            self.data.set_state(position)
        self.writer = MetricsWriter(self.config.output, int(self.state.step), first_process())
        self.report = Report(console, run, int(self.state.step))
        step = make_run_step(run.config, run.models, run.optimizer, groups)
        self.step = jit_step(step, self.state, self.config.xla)
        objective = make_objective(run.config, run.models, groups)

        def eval_step(params: Params, batch: TrainBatch, stay: Params | None) -> Sums:
            first = jax.tree.map(lambda x: x[0], batch)
            return objective(params, first, stay, None)

        everywhere = NamedSharding(run.mesh, PartitionSpec())
        self.eval_step = jax.jit(eval_step, out_shardings=everywhere)

    def _start(self) -> tuple[TrainState, Any]:
        """The state to begin with, and where in the data it was saved."""
        run = self.run_
        abstract = abstract_state(run.config, run.models, run.optimizer, run.mesh)
        wanted = {"params": abstract.params, "optimizer": abstract.optimizer, "progress": None}
        if run.models.adapted:
            wanted["params"] = abstract_adapter(run)
        if abstract.average is not None:
            wanted["trained"] = abstract.average
        found = self.steps.restore_latest(**wanted)
        if found is None:
            return initial_state(self.run_), None
        latest, saved = found
        step = jax.device_put(np.int32(latest), abstract.step.sharding)
        params = saved["params"]
        if run.models.adapted:
            params = join(held_base(run), params)
        average = None
        if abstract.average is not None:
            # What was saved as the parameters is their mean.
            average, _ = split(params, run.trained)
            params = join(params, saved["trained"])
        state = TrainState(step, params, saved["optimizer"], average)
        return state, saved["progress"]["data"]

    def _reference(self) -> Params | None:
        """The parameters that preferences are measured against, where they are none of the
        state's; or their log-probabilities, put into the data."""
        run = self.run_
        if run.config.train.objective != "preferences":
            return None
        if run.config.preference.reference == "store":
            store_reference(run, self.state.params, self._place, self.console)
            return None
        if run.models.adapted:
            return None
        # The reference computes in this type anyway.
        dtype = jnp.dtype(run.model_config.dtype)
        return weights.load_weights(self.config.init, run.mesh, dtype)[1]

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
                self.state, metrics = self.step(self.state, placed, self.stay)
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
        total: Sums | None = None
        params = self._served()
        for i in range(data.steps_per_epoch):
            batch = self._place(data.batch(i, self.local))
            sums = jax.device_get(self.eval_step(params, batch, self.stay))
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        assert total is not None
        values = {"eval_loss": float(total.loss / total.weight)}
        values |= {
            f"eval_{name}": float(x) / max(float(n), 1) for name, (x, n) in total.means.items()
        }
        self.report.line(number, values)
        self.writer.write(number, values)

    def _served(self) -> Params:
        """The parameters that are evaluated and saved: their mean, where one is kept."""
        mean = self.state.average
        return self.state.params if mean is None else join(self.state.params, mean)

    def _save(self, number: int) -> None:
        served = self._served()
        extra: dict[str, Any] = {}
        if self.run_.models.adapted:
            flat = flatten(served)
            served = nest({path: x for path, x in flat.items() if is_adapter_path(path)})
        if self.state.average is not None:
            extra["trained"], _ = split(self.state.params, self.run_.trained)
        progress = {"data": self.data.get_state()}
        self.steps.save(number, served, optimizer=self.state.optimizer, progress=progress, **extra)


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
