"""What the processes of a job agree on before they go on together.

A process that fails alone leaves the others waiting in their next collective operation. These
functions are called by all processes at the same point.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from qa_jax.errors import InputError
from qa_jax.parallel.distributed import barrier
from qa_jax.paths import PathLike, as_path

T = TypeVar("T")


def gather_texts(text: str) -> list[str]:
    """Every process's text, by process index."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(data.size, np.int32)))
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:n]).decode() for row, n in zip(rows, sizes, strict=True)]


def raise_together(error: InputError | None) -> None:
    """Raises in all processes if any has an error: its own, or the first of the others', which
    names the process and its host."""
    found = gather_texts("" if error is None else f"{socket.gethostname()}\n{error}")
    if error is not None:
        raise error
    for index, text in enumerate(found):
        if text:
            host, _, message = text.partition("\n")
            raise InputError(f"process {index} on {host}", message)


def agree(function: Callable[[], T]) -> T:
    """The function's result, once every process has one; see `raise_together`."""
    error: InputError | None = None
    try:
        result = function()
    except InputError as caught:
        error = caught
    raise_together(error)
    return result


def check_same(values: dict[str, str], remedy: str) -> None:
    """Raises InputError, in all processes, naming the first value that is not the same in all.

    Args:
        values: by name, for example digests.
        remedy: what to do about a difference.
    """
    host = socket.gethostname()
    for name, value in values.items():
        found = [t.split("\n", 1) for t in gather_texts(f"{host}\n{value}")]
        for index, (other, theirs) in enumerate(found):
            if theirs != found[0][1]:
                raise InputError(
                    name,
                    f"process {index} on {other} has {theirs}, process 0 on {found[0][0]} "
                    f"has {found[0][1]}",
                    remedy,
                )


def check_shared_directory(directory: PathLike) -> None:
    """Raises InputError, in all processes, if they do not see the same directory: each writes a
    file, and looks for those of the others."""
    if jax.process_count() == 1:
        return
    root = as_path(directory)
    token = gather_texts(uuid.uuid4().hex)[0]
    names = [f".shared-{token}-{i}" for i in range(jax.process_count())]

    def write() -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            (root / names[jax.process_index()]).write_text(token)
        except OSError as error:
            raise InputError(root, f"cannot be written ({error})", "name another") from None

    agree(write)
    barrier("written")
    missing = [i for i, name in enumerate(names) if not (root / name).exists()]
    barrier("seen")
    (root / names[jax.process_index()]).unlink()
    error = None
    if missing:
        error = InputError(
            root,
            f"process {jax.process_index()} on {socket.gethostname()} does not see what process "
            f"{missing[0]} wrote there",
            "name a directory that all hosts share (NFS, gs://...)",
        )
    raise_together(error)
