"""The compiled programs of a run: one for each bucket, all compiled before the first step."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import jax
from rich.console import Console

from qa_jax.data import TrainBatch
from qa_jax.parallel import is_main_process
from qa_jax.typing import PyTree


class Program:
    """A jitted function of (state, batch, reference), compiled ahead of time for each batch shape.

    Args:
        name: for messages.
        function: jitted.
    """

    def __init__(self, name: str, function: jax.stages.Wrapped) -> None:
        self.name, self._function = name, function
        self._compiled: dict[str, jax.stages.Compiled] = {}

    def __call__(self, state: PyTree, batch: TrainBatch, reference: PyTree) -> PyTree:
        key = describe_shape(batch)
        if key not in self._compiled:
            if self._compiled:
                warnings.warn(f"the {self.name} is compiled again, for {key}", stacklevel=2)
            self.compile(self.lower(state, batch, reference), key)
        return self._compiled[key](state, batch, reference)

    @property
    def num_compiled(self) -> int:
        """How many shapes it has been compiled for."""
        return len(self._compiled)

    def lower(self, state: PyTree, batch: TrainBatch, reference: PyTree) -> jax.stages.Lowered:
        """The program for these arguments, which may be abstract, traced but not compiled."""
        return self._function.lower(state, batch, reference)

    def compile(self, lowered: jax.stages.Lowered, key: str) -> None:
        """Compiles a program for the batches that `describe_shape` describes by `key`."""
        self._compiled[key] = lowered.compile()


def describe_shape(batch: TrainBatch) -> str:
    """A batch's shapes, in words."""
    micro_batches, rows, tokens = batch.tokens.shape
    text = f"{micro_batches} x {rows} rows of {tokens} tokens"
    if batch.waveform is None:
        return text
    return f"{text}, {batch.waveform.shape[1]} clips of {batch.waveform.shape[2]} samples"


def compile_all(
    jobs: Sequence[tuple[Program, PyTree, TrainBatch, PyTree]], console: Console
) -> None:
    """Compiles programs for their arguments, several at a time, with a progress line.

    Args:
        jobs: program, state, batch and reference of each.
        console: where to print.
    """
    started, quiet = time.perf_counter(), not is_main_process()
    with ThreadPoolExecutor(min(len(jobs), os.cpu_count() or 1)) as pool:
        # Tracing is Python; only compiling runs in parallel.
        futures = {}
        for program, *arguments in jobs:
            key = describe_shape(arguments[1])
            lowered = program.lower(*arguments)
            futures[pool.submit(program.compile, lowered, key)] = f"{program.name}: {key}"
        for done, future in enumerate(as_completed(futures), start=1):
            future.result()
            if not quiet:
                seconds = time.perf_counter() - started
                console.print(
                    f"compiled {done} of {len(jobs)} ({futures[future]}), {seconds:.1f} s",
                    highlight=False,
                )
