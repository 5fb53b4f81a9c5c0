"""The training loop: batch, step, log, evaluate, save; resumable at any step."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from qa_jax.config import RunConfig, TrainConfig
from qa_jax.data import TrainBatch
from qa_jax.errors import InputError
from qa_jax.parallel import any_across_processes, local_batch_shards
from qa_jax.train.metrics import read_metrics
from qa_jax.train.objectives import LossOutput
from qa_jax.train.reference import load_reference
from qa_jax.train.report import Report
from qa_jax.train.run import TrainingRun, make_run_step, prepare
from qa_jax.train.sharding import shard_batch
from qa_jax.train.state import eval_params, open_output_dir, restore_or_initialize, save
from qa_jax.train.step import Metrics, TrainState, jit_train_step
from qa_jax.typing import Params

EvalStep = Callable[[Params, TrainBatch, Params | None], LossOutput]


class Preempted(Exception):
    """The run was stopped by a signal; it has been saved."""


def train(config: RunConfig, console: Console | None = None) -> dict[str, float]:
    """Trains to `train.steps`, resuming if possible, and returns the last step's metrics.

    SIGINT and SIGTERM, to any of its processes, save the current step and raise Preempted.
    """
    console = console or Console()
    run = prepare(config)
    with jax.set_mesh(run.mesh), catch_signals() as signals:
        checkpoints = open_output_dir(run)
        state, data_state = restore_or_initialize(run, checkpoints)
        ref_params = load_reference(run, state.params, console)
        # Created last: the iterator prefetches, and batches contain the reference's values.
        local_shards = local_batch_shards(run.mesh)
        batches = run.data.iterate(local_shards)
        if data_state is not None:
            batches.set_state(data_state)
        report = Report(console, run, int(state.step))
        train_step, eval_step = compile_steps(run, state)

        unlogged: tuple[int, Metrics, float] | None = None
        logged: dict[str, float] = {}
        preempted = False
        for step in range(int(state.step) + 1, config.train.steps + 1):
            started = time.perf_counter()
            batch = next(batches)
            data_wait = time.perf_counter() - started
            device_batch = shard_batch(batch, run.mesh)
            profile(config.train, step, state)
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, device_batch, ref_params)
            # While the devices run this step, the one before is logged.
            if unlogged is not None:
                logged = log_step(run, report, *unlogged) or logged
            unlogged = step, metrics, data_wait
            report.count_batch(batch, len(local_shards))
            is_last = step == config.train.steps
            if run.eval_data and (_every(step, config.train.eval_every) or is_last):
                report.log_eval(step, evaluate(run, eval_step, state, ref_params))
            preempted = not is_last and is_preempted(config.train, step, bool(signals))
            if _every(step, config.train.save_every) or preempted or is_last:
                save(run, checkpoints, state, batches, step)
            if preempted:
                break
        if unlogged is not None:
            logged = log_step(run, report, *unlogged) or logged
        checkpoints.close()
        report.close()
    if preempted:
        raise Preempted(f"stopped at step {int(state.step)} and saved; the same command resumes")
    return logged or _last_logged(config.train.output_dir)


def compile_steps(
    run: TrainingRun, state: TrainState
) -> tuple[Callable[..., tuple[TrainState, Metrics]], EvalStep]:
    """The jitted training step, and the jitted loss of a batch without update."""
    train_step = make_run_step(run.config, run.models, run.objective, run.optimizer)

    def eval_step(params: Params, batch: TrainBatch, ref_params: Params | None) -> LossOutput:
        first = jax.tree.map(lambda x: x[0], batch)
        return run.objective.loss(params, first, ref_params, None)

    replicated = NamedSharding(run.mesh, PartitionSpec())
    return (
        jit_train_step(train_step, state, run.config.train.xla_flags),
        jax.jit(eval_step, out_shardings=replicated),
    )


def is_preempted(config: TrainConfig, step: int, signalled: bool) -> bool:
    """Whether all processes stop after this step.

    Agreeing waits for the current step, so several processes do it only at log steps.
    """
    if jax.process_count() == 1:
        return signalled
    return _every(step, config.log_every or 10) and any_across_processes(signalled)


def log_step(
    run: TrainingRun, report: Report, step: int, metrics: Metrics, data_wait: float
) -> dict[str, float]:
    """Logs a finished step if it is due, and returns its metrics.

    Raises InputError naming the records if the loss is not finite.
    """
    report.step(step, data_wait)
    train = run.config.train
    is_due = _every(step, train.log_every) or step == train.steps
    if not is_due and bool(np.isfinite(metrics["loss"])):
        return {}
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if not math.isfinite(values["loss"]):
        sources = run.data.sources(step - 1)
        more = f" and {len(sources) - 8} more" if len(sources) > 8 else ""
        raise InputError(
            f"step {step}",
            f"the loss is {values['loss']} on {', '.join(sources[:8])}{more}",
            "check these records, lower optimizer.peak_lr, or start from an earlier checkpoint",
        )
    return report.log(step, values)


def evaluate(
    run: TrainingRun, eval_step: EvalStep, state: TrainState, ref_params: Params | None
) -> dict[str, float]:
    """The held-out loss and metrics."""
    data, local_shards = run.eval_data, local_batch_shards(run.mesh)
    assert data is not None
    total: LossOutput | None = None
    params = eval_params(state)
    for i in range(data.steps_per_epoch):
        batch = shard_batch(data.batch(i, local_shards), run.mesh)
        out = jax.device_get(eval_step(params, batch, ref_params))
        total = out if total is None else jax.tree.map(np.add, total, out)
    assert total is not None
    means = {f"eval_{name}": float(x) / max(float(n), 1) for name, (x, n) in total.means.items()}
    return {"eval_loss": float(total.loss / total.weight), **means}


def profile(config: TrainConfig, step: int, state: TrainState) -> None:
    """Starts and stops the trace of the steps in `train.profile`, for TensorBoard or Perfetto."""
    first, last = config.profile or (0, -1)
    if step == first:
        jax.profiler.start_trace(f"{config.output_dir}/profile")
    elif step == last + 1:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()


def _every(step: int, interval: int) -> bool:
    return bool(interval) and step % interval == 0


def _last_logged(output_dir: str) -> dict[str, float]:
    rows = [r for r in read_metrics(f"{output_dir}/metrics.jsonl") if "loss" in r]
    return rows[-1] if rows else {}


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list that receives SIGINT and SIGTERM; a second signal interrupts as usual."""
    received: list[int] = []

    def handle(signum: int, _: object) -> None:
        if received:
            signal.default_int_handler(signum, None)
        received.append(signum)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
