"""`qa-jax convert`: the jobs as a user sees them, with progress."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import convert_weights
from convert_weights.work import Progress
from qa_jax import checkpoint, hf


def run(arguments: argparse.Namespace) -> None:
    """Does the job that the command line names."""
    if arguments.job == "table":
        from convert_weights.table import markdown

        print(markdown(), end="")
    elif arguments.job == "verify":
        with _bar("comparing") as progress:
            rows, whole = convert_weights.verify(
                arguments.source, arguments.checkpoint, progress=progress
            )
        convert_weights.show(rows, whole)
        if arguments.logits:
            from convert_weights.logits import compare_logits

            print(compare_logits(arguments.source, arguments.checkpoint))
    elif arguments.job == "to-jax" and hf.is_peft(arguments.source):
        convert_weights.adapter_to_jax(arguments.source, arguments.dest, arguments.base)
        print(f"wrote {arguments.dest}, an adapter")
    elif arguments.job == "to-hf" and _adapter_alone(arguments):
        convert_weights.adapter_to_hf(
            arguments.source, arguments.dest, arguments.base, arguments.step
        )
        print(f"wrote {arguments.dest}, an adapter")
    else:
        with _bar("converting") as progress:
            if arguments.job == "to-jax":
                whole = convert_weights.to_jax(
                    arguments.source, arguments.dest, arguments.dtype, progress
                )
            else:
                whole = convert_weights.to_hf(
                    arguments.source,
                    arguments.dest,
                    arguments.shard_size,
                    arguments.dtype,
                    arguments.step,
                    progress,
                )
        print(f"wrote {arguments.dest}; checksum of all tensors {whole}")


def _adapter_alone(arguments: argparse.Namespace) -> bool:
    """Whether PEFT's format is asked for."""
    return checkpoint.is_adapter(arguments.source) and not arguments.merge


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A bar of bytes, their speed and the time left, where errors go to a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    ]
    columns.append(TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
