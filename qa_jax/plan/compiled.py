"""Compiling a program for a plan, and what the plan reads from it, kept for the next plan."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from qa_jax.errors import InputError

LOW_EFFORT_OPTIONS: Any = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
"""Compiler options for `--quick` (libtpu 0.0.42: 7 s instead of 47 s for a decoder layer)."""


class CompiledProgram(NamedTuple):
    """What a plan reads from a compiled program.

    Attributes:
        problem: why it does not fit; then nothing else is set but the seconds.
        seconds: compilation time.
        text: the compiled module.
        argument_bytes, temporary_bytes: memory of one device.
        new_bytes: of results that are not written over an argument.
    """

    problem: str
    seconds: float
    text: str = ""
    argument_bytes: int = 0
    temporary_bytes: int = 0
    new_bytes: int = 0


def compile_or_problem(
    lowered: jax.stages.Lowered, quick: bool
) -> tuple[jax.stages.Compiled | None, str]:
    """The compiled program; or None, and how much memory it would have needed."""
    try:
        return lowered.compile(LOW_EFFORT_OPTIONS if quick else None), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, _out_of_memory(str(error))


def read_program(compiled: jax.stages.Compiled, seconds: float) -> CompiledProgram:
    """Of a program that fits."""
    stats: Any = compiled.memory_analysis()
    return CompiledProgram(
        problem="",
        seconds=seconds,
        text=compiled.as_text() or "",
        argument_bytes=stats.argument_size_in_bytes,
        temporary_bytes=stats.temp_size_in_bytes,
        new_bytes=stats.output_size_in_bytes - stats.alias_size_in_bytes,
    )


def compile_cached(
    lowered: jax.stages.Lowered,
    quick: bool,
    cache_dir: Path | None = None,
    key: Mapping[str, Any] | None = None,
) -> CompiledProgram:
    """Compiles a program, or reads what an earlier call kept of it.

    Args:
        lowered: the program.
        quick: whether with low effort.
        cache_dir: directory of earlier results; None to compile in any case.
        key: what the result depends on besides the program's text and `quick`: the compiler, its
            options, the devices.

    Raises:
        InputError: if the directory cannot be created.
    """
    path = None
    if cache_dir is not None:
        parts = json.dumps({**(key or {}), "quick": quick}, sort_keys=True)
        digest = hashlib.sha256((parts + lowered.as_text()).encode()).hexdigest()
        path = cache_dir / f"{digest[:32]}.json.gz"
        kept = _read(path)
        if kept is not None:
            return kept
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                str(cache_dir), f"cannot be created ({error.strerror})", "choose another --cache"
            ) from None
    started = time.perf_counter()
    compiled, problem = compile_or_problem(lowered, quick)
    seconds = time.perf_counter() - started
    program = CompiledProgram(problem, seconds)
    if compiled is not None:
        program = read_program(compiled, seconds)
    if path is not None:
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(gzip.compress(json.dumps(program._asdict()).encode()))
        unfinished.replace(path)
    return program


def _read(path: Path) -> CompiledProgram | None:
    """An earlier result; None if there is none, or it is damaged."""
    try:
        return CompiledProgram(**json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, TypeError, zlib.error):
        return None


def _out_of_memory(text: str) -> str:
    used = re.search(r"Used ([\d.]+\w+) of ([\d.]+\w+) hbm", text) or re.search(
        r"required[^(]*\(([\d.]+\w+)\) exceeds available[^(]*\(([\d.]+\w+)\)", text
    )
    return f"needs {used.group(1)} of {used.group(2)}" if used else " ".join(text.split())[:300]
