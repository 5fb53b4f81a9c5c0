"""The training loop: batch, step, log, evaluate, save; resumable at any step."""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from qa_jax.config import RunConfig, TrainConfig
from qa_jax.data import TrainBatch
from qa_jax.data.loader import BatchIterator
from qa_jax.errors import InputError
from qa_jax.parallel import (
    agree,
    barrier,
    check_same,
    is_main_process,
    local_batch_shards,
    raise_together,
    reached_preemption,
)
from qa_jax.paths import as_path, is_remote, upload
from qa_jax.train.best import BestStep
from qa_jax.train.metrics import read_metrics
from qa_jax.train.objectives import LossOutput
from qa_jax.train.programs import Program, compile_all
from qa_jax.train.reference import load_reference
from qa_jax.train.report import Report
from qa_jax.train.resume import changed_settings, write_run
from qa_jax.train.run import TrainingRun, make_run_step, prepare
from qa_jax.train.sharding import shard_batch
from qa_jax.train.state import eval_params, open_output_dir, restore_or_initialize, save
from qa_jax.train.step import Metrics, TrainState, jit_train_step
from qa_jax.typing import Params


class Preempted(Exception):
    """The run was stopped by a signal; it has been saved."""


class Unlogged(NamedTuple):
    """A step that was dispatched and is not logged yet.

    Attributes:
        step: its number.
        metrics: on the devices.
        data_wait: seconds that it waited for data.
        error: why this process could not read its part of the batch, or None.
    """

    step: int
    metrics: Metrics
    data_wait: float
    error: InputError | None


Score = Callable[[TrainingRun, Params], dict[str, float]]
"""More metrics of an evaluation, such as `qa_jax.evaluate.AnswerScorer`'s."""


def train(
    config: RunConfig, console: Console | None = None, score: Score | None = None
) -> dict[str, float]:
    """Trains to `train.steps`, resuming if possible, and returns the last step's metrics.

    SIGTERM to any of its processes, or SIGINT, saves the current step and raises Preempted. However
    the run ends, it waits for the save in progress. `score` adds metrics to evaluations.
    """
    console = console or Console()
    run = agree(lambda: prepare(config))
    check_same_data(run, 0)
    with jax.set_mesh(run.mesh), catch_signals() as signals, open_output_dir(run) as checkpoints:
        record_settings(run, console)
        state, data_state = agree(lambda: restore_or_initialize(run, checkpoints))
        ref_params = load_reference(run, state.params, console)
        local_shards = local_batch_shards(run.mesh)
        # Created last: the iterator prefetches, and batches contain the reference's values.
        batches = run.data.iterate(local_shards, data_state)
        # Before processes meet, after which the first one writes the metrics file.
        best = BestStep.so_far(config.train, int(state.step))
        checkpoints.kept_step = best.step
        train_step, eval_step = compile_steps(run, state, ref_params, console)
        unlogged: Unlogged | None = None
        logged: dict[str, float] = {}
        preempted = profiling = False
        with closing(Report(console, run, int(state.step))) as report:
            first = config.train.steps + 1 if best.is_exhausted else int(state.step) + 1
            for step in range(first, config.train.steps + 1):
                batch, data_wait, error = next_batch(run, batches, step, local_shards)
                device_batch = shard_batch(batch, run.mesh)
                profiling = profile(config.train, step, profiling, state)
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, device_batch, ref_params)
                logged = log_step(run, report, unlogged) or logged  # while devices run this step
                unlogged = Unlogged(step, metrics, data_wait, error)
                report.count_batch(batch, len(local_shards))
                is_last = step == config.train.steps
                preempted = reached_preemption(step, bool(signals)) and not is_last
                evaluates = run.eval_data and (_every(step, config.train.eval_every) or is_last)
                saves = _every(step, config.train.save_every) or preempted or is_last
                if evaluates or saves:  # not of a state that is not finite
                    logged = log_step(run, report, unlogged) or logged
                    unlogged = None
                if evaluates:
                    values = evaluate(run, eval_step, state, ref_params, score)
                    report.log_eval(step, values)
                    if best.update(step, values):
                        checkpoints.kept_step, saves = step, True
                if saves or best.is_exhausted:
                    save(run, checkpoints, state, batches, step)
                    report.upload()
                if preempted or best.is_exhausted:
                    break
                check_same_data(run, step)
            logged = log_step(run, report, unlogged) or logged
            profile(config.train, -1, profiling, state)
    if preempted:
        raise Preempted(f"stopped at step {int(state.step)} and saved; the same command resumes")
    return logged or _last_logged(config.train.output_dir)


def check_same_data(run: TrainingRun, step: int) -> None:
    """Raises InputError, in all processes, if they do not train on the same plan of the epoch that
    begins with this step, if one does."""
    epoch, index = run.data.epochs.locate(step)
    if index or jax.process_count() == 1:
        return
    check_same(
        run.data.digests(epoch),
        "give every host the same files; qa-jax data check MANIFEST names unreadable ones",
    )


def record_settings(run: TrainingRun, console: Console) -> None:
    """Writes the settings of a new run, or prints which ones have changed since it began."""
    records = run.data.examples.digest
    changed = agree(lambda: changed_settings(run.config, records))
    if is_main_process():
        for line in changed:
            console.print(line, highlight=False)
        write_run(run.config, records)


def compile_steps(
    run: TrainingRun, state: TrainState, ref_params: Params | None, console: Console
) -> tuple[Program, Program]:
    """The training step, and the loss of a batch without update, compiled for all buckets."""
    train_step = make_run_step(run.config, run.models, run.objective, run.optimizer)

    def eval_step(params: Params, batch: TrainBatch, ref_params: Params | None) -> LossOutput:
        first = jax.tree.map(lambda x: x[0], batch)
        return run.objective.loss(params, first, ref_params, None)

    replicated = NamedSharding(run.mesh, PartitionSpec())
    programs = (
        Program("training step", jit_train_step(train_step, state, run.config.train.xla_flags)),
        Program("evaluation step", jax.jit(eval_step, out_shardings=replicated)),
    )
    local_shards, jobs = local_batch_shards(run.mesh), []
    for program, data, values in (
        (programs[0], run.data, state),
        *((programs[1], data, eval_params(state)) for data in run.eval_data.values()),
    ):
        for step in data.shape_steps().values():
            batch = shard_batch(data.poisoned_batch(step, local_shards), run.mesh)
            jobs.append((program, values, batch, ref_params))
    if int(state.step) < run.config.train.steps:
        compile_all(jobs, console)
        barrier("compiled")  # the first step begins together: see initialize_distributed
    return programs


def next_batch(
    run: TrainingRun, batches: BatchIterator, step: int, local_shards: list[int]
) -> tuple[TrainBatch, float, InputError | None]:
    """The next batch, and how many seconds it was waited for; or, if this process cannot read its
    part, one of NaN, and the error.

    The loss of that step is NaN in all processes, which then stop together: see `log_step`.
    """
    started = time.perf_counter()
    try:
        return next(batches), time.perf_counter() - started, None
    except InputError as error:
        return run.data.poisoned_batch(step - 1, local_shards), 0.0, error


def log_step(run: TrainingRun, report: Report, done: Unlogged | None) -> dict[str, float]:
    """Logs a finished step if there is one and it is due, and returns its metrics.

    Raises InputError if it is not finite, in all processes: naming what one of them could not read,
    or else the records.
    """
    if done is None:
        return {}
    step, metrics, data_wait, error = done
    report.step(step, data_wait)
    train = run.config.train
    is_finite = bool(np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"]))
    if is_finite and not _every(step, train.log_every) and step != train.steps:
        return {}
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    if is_finite:  # a mean of nothing is NaN, and is left out
        return report.log(step, {k: v for k, v in values.items() if not math.isnan(v)})
    raise_together(error)
    sources = run.data.sources(step - 1)
    more = f" and {len(sources) - 8} more" if len(sources) > 8 else ""
    cause = f"the loss is {values['loss']}, the gradients' norm {values['grad_norm']}, on "
    cause += f"{', '.join(sources[:8])}{more}"
    skipped = int(values.get("skipped_steps", math.inf)) if train.max_skipped_steps else math.inf
    if skipped <= train.max_skipped_steps:
        warnings.warn(
            f"step {step}: {cause}: skipped ({skipped} of at most {train.max_skipped_steps})",
            stacklevel=2,
        )
        return {}
    raise InputError(
        f"step {step}",
        cause,
        "check these records, lower optimizer.peak_lr, or set train.max_skipped_steps; the same "
        "command resumes from the last checkpoint",
    )


def evaluate(
    run: TrainingRun,
    eval_step: Program,
    state: TrainState,
    ref_params: Params | None,
    score: Score | None = None,
) -> dict[str, float]:
    """The loss and metrics of the held-out records, by `PREFIX_NAME`."""
    local_shards, params = local_batch_shards(run.mesh), eval_params(state)
    values = {} if score is None else score(run, params)
    for prefix, data in run.eval_data.items():
        total: LossOutput | None = None
        for i in range(data.steps_per_epoch):
            local = agree(lambda i=i, data=data: data.batch(i, local_shards))  # type: ignore[misc]
            out = jax.device_get(eval_step(params, shard_batch(local, run.mesh), ref_params))
            total = out if total is None else jax.tree.map(np.add, total, out)
        assert total is not None
        values[f"{prefix}_loss"] = float(total.loss / total.weight)
        for name, (x, n) in total.means.items():
            values[f"{prefix}_{name}"] = float(x) / max(float(n), 1)
    return values


def profile(config: TrainConfig, step: int, is_running: bool, state: TrainState) -> bool:
    """Starts and stops the trace of the steps in `train.profile`, for TensorBoard or Perfetto, and
    returns whether it runs."""
    first, last = config.profile or (0, -1)
    wanted = first <= step <= last
    output = as_path(config.output_dir) / "profile"
    is_local = not is_remote(output)
    local = output if is_local else Path(tempfile.gettempdir()) / f"qa_jax_profile_{os.getpid()}"
    if wanted and not is_running:
        jax.profiler.start_trace(str(local))
    elif is_running and not wanted:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        if not is_local:
            upload(local, output)
    return wanted


def _every(step: int, interval: int) -> bool:
    return bool(interval) and step % interval == 0


def _last_logged(output_dir: str) -> dict[str, float]:
    rows = [r for r in read_metrics(f"{output_dir}/metrics.jsonl") if "loss" in r]
    return rows[-1] if rows else {}


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list that receives SIGINT and SIGTERM; a second SIGINT interrupts as usual.

    Of several processes, JAX's preemption service catches SIGTERM, and SIGINT is passed on to it.
    """
    received: list[int] = []
    is_alone = jax.process_count() == 1

    def handle(signum: int, _: object) -> None:
        if received:
            signal.default_int_handler(signum, None)
        received.append(signum)
        if not is_alone:
            os.kill(os.getpid(), signal.SIGTERM)

    caught = (signal.SIGINT, signal.SIGTERM) if is_alone else (signal.SIGINT,)
    before = {s: signal.signal(s, handle) for s in caught}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
