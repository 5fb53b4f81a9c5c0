"""A resumable, atomic conversion directory."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import numpy as np

from qa_jax.config import JsonDict
from qa_jax.errors import InputError
from qa_jax.terminal import Progress
from qa_jax.typing import Shaped

CHECKSUMS_FILE = "checksums.json"
"""SHA-256 of each tensor's bytes in Hugging Face's layout, written by every conversion."""
_JOURNAL = "conversion.jsonl"
NUM_THREADS = 2
"""Tensors converted at a time, which bounds the memory; two keep disk and CPU busy."""

Item = TypeVar("Item")


class ConversionJob:
    """The directory `.DEST.partial`, which is renamed to DEST when it is complete.

    A journal lists the finished tensors. An interrupted conversion leaves the directory, and the
    same conversion resumes there; any other starts anew. No command accepts it as a checkpoint,
    because the configuration is written last.

    Args:
        dest: the new directory; raises InputError if it exists and is not empty.
        description: source and options; a journal with another one is not resumed.
        size: bytes that will be written; raises InputError if the disk has less space.
    """

    def __init__(self, dest: str | Path, description: JsonDict, size: int) -> None:
        self.dest = Path(dest).absolute()
        self.partial = self.dest.with_name(f".{self.dest.name}.partial")
        self.done: dict[str, str] = {}
        self._description, self._size = json.loads(json.dumps(description)), size

    def __enter__(self) -> ConversionJob:
        refuse_existing(self.dest)
        self.partial.mkdir(parents=True, exist_ok=True)
        # The directory itself is locked: filelock would leave a lock file in the result.
        self._lock = os.open(self.partial, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise InputError(
                self.dest, "another process is converting to it", "wait for it, or stop it"
            ) from None
        self.resumed = self._read_journal()
        if not self.resumed:
            for path in self.partial.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        # Allocated blocks, not file sizes: preallocated files have their full size.
        used = sum(p.stat().st_blocks * 512 for p in self.partial.rglob("*") if p.is_file())
        missing, free = self._size - used, shutil.disk_usage(self.partial).free
        if free < missing:
            os.close(self._lock)
            if not self.resumed:
                self.partial.rmdir()
            raise InputError(
                self.dest,
                f"needs {missing / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free",
                "free some, or name a directory on another disk",
            )
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def _read_journal(self) -> bool:
        try:
            lines = (self.partial / _JOURNAL).read_text().split("\n")
            if json.loads(lines[0]) != self._description:
                return False
        except (OSError, ValueError):
            return False
        # What follows the last line break was truncated by an interruption.
        for line in lines[1:-1]:
            name, checksum = json.loads(line)
            self.done[name] = checksum
        whole = "".join(line + "\n" for line in lines[:-1])
        (self.partial / _JOURNAL).write_text(whole)
        return True

    def mark_preallocated(self) -> None:
        """Starts the journal, once all files are allocated: from here on the job can resume."""
        with (self.partial / _JOURNAL).open("w") as journal:
            journal.write(json.dumps(self._description) + "\n")

    def convert_all(
        self,
        items: dict[str, tuple[Item, int]],
        convert: Callable[[Item], str],
        progress: Progress | None,
    ) -> None:
        """Converts the unfinished items, two at a time, and records each in the journal.

        Args:
            items: items and their bytes by name.
            convert: writes one item and returns its checksum.
            progress: called with bytes done and bytes in all.
        """
        total = sum(size for _, size in items.values())
        finished = sum(size for name, (_, size) in items.items() if name in self.done)
        report = progress or (lambda done, total: None)
        report(finished, total)
        with (
            (self.partial / _JOURNAL).open("a") as journal,
            ThreadPoolExecutor(NUM_THREADS) as pool,
        ):
            futures = {
                pool.submit(convert, item): name
                for name, (item, _) in items.items()
                if name not in self.done
            }
            try:
                for future in as_completed(futures):
                    name = futures[future]
                    self.done[name] = future.result()
                    journal.write(json.dumps([name, self.done[name]]) + "\n")
                    journal.flush()
                    finished += items[name][1]
                    report(finished, total)
            except InputError:
                raise
            except (OSError, ValueError, RuntimeError) as error:
                text = " ".join(str(error).split())
                raise InputError(
                    self.partial,
                    f"cannot be written ({text})",
                    "free disk space or repair what the message names, then run the same command "
                    "again: it resumes",
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def finish(self) -> str:
        """Writes the checksums, renames the directory and returns the checksum of all tensors."""
        total = total_checksum(self.done)
        tensors = dict(sorted(self.done.items()))
        checksums = {"algorithm": "sha256", "total": total, "tensors": tensors}
        write_json(self.partial / CHECKSUMS_FILE, checksums)
        (self.partial / _JOURNAL).unlink()
        for directory in (self.partial, *(p for p in self.partial.rglob("*") if p.is_dir())):
            _sync(directory)
        if self.dest.exists():
            self.dest.rmdir()
        os.replace(self.partial, self.dest)
        _sync(self.dest.parent)
        return total


def refuse_existing(dest: str | Path) -> None:
    """Raises InputError if the destination exists and is not an empty directory."""
    path = Path(dest)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(path, "exists and is not empty", "name a new directory")


class Checksum:
    """SHA-256 of the concatenated bytes of arrays."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, part: Shaped[np.ndarray, "..."]) -> None:
        self._digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)

    @property
    def value(self) -> str:
        return self._digest.hexdigest()


def total_checksum(checksums: dict[str, str]) -> str:
    """One checksum of a model: SHA-256 of the lines "CHECKSUM  NAME", sorted by name."""
    lines = "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_checksums(directory: str | Path) -> dict[str, str]:
    """The checksums written by a conversion into a directory; none if there are none."""
    try:
        return json.loads((Path(directory) / CHECKSUMS_FILE).read_text())["tensors"]
    except (OSError, ValueError, KeyError):
        return {}


def read_total_checksum(directory: str | Path) -> str:
    """The checksum of all tensors, from those written by a conversion into a directory."""
    return total_checksum(read_checksums(directory))


def compare(name: str, source: object, expected: dict[str, str], found: str) -> None:
    """Raises InputError if a tensor's checksum is not the recorded one."""
    if expected.get(name, found) != found:
        raise InputError(
            source,
            f"{name}: checksum {found[:16]}..., {CHECKSUMS_FILE} says {expected[name][:16]}...",
            "the file was damaged or changed since; copy it again",
        )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
