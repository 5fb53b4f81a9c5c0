"""A conversion in progress: made beside its destination, resumed, and renamed at the end."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from qa_jax.errors import InputError

CHECKSUMS_FILE = "checksums.json"
"""In what a conversion writes: SHA-256 of each tensor's bytes in Hugging Face's layout."""
_JOURNAL = "conversion.jsonl"
THREADS = 2
"""Tensors at work at once: what bounds the memory, and two keep disk and processor busy."""

Progress = Callable[[int, int], None]
"""Told (bytes done, bytes in all) after every tensor."""
Item = TypeVar("Item")


class Work:
    """The directory `.DEST.partial`, which takes the name DEST when everything is in it.

    A journal in it names every tensor that is done. An interrupted conversion leaves the directory;
    the same conversion goes on there, any other starts anew. Nothing in it makes it a checkpoint
    that a command would accept: the configuration is written last.

    Args:
        dest: the new directory; raises InputError where it exists and is not empty.
        job: what is converted and how; decides whether a journal found is of this conversion.
        size: bytes that will be written; raises InputError where the disk has less room.
    """

    def __init__(self, dest: str | Path, job: dict[str, Any], size: int) -> None:
        self.dest = Path(dest).absolute()
        self.partial = self.dest.with_name(f".{self.dest.name}.partial")
        self.done: dict[str, str] = {}
        self._job, self._size = json.loads(json.dumps(job)), size

    def __enter__(self) -> Work:
        refuse_existing(self.dest)
        self.partial.mkdir(parents=True, exist_ok=True)
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
        # Blocks, not sizes: files to be filled have their size from the start.
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
            if json.loads(lines[0]) != self._job:
                return False
        except (OSError, ValueError):
            return False
        # What follows the last line break was cut off while it was written.
        for line in lines[1:-1]:
            name, checksum = json.loads(line)
            self.done[name] = checksum
        whole = "".join(line + "\n" for line in lines[:-1])
        (self.partial / _JOURNAL).write_text(whole)
        return True

    def prepared(self) -> None:
        """To be called when all files are there, still to be filled: from here on it resumes."""
        with (self.partial / _JOURNAL).open("w") as journal:
            journal.write(json.dumps(self._job) + "\n")

    def each(
        self,
        items: dict[str, tuple[Item, int]],
        convert: Callable[[Item], str],
        progress: Progress | None,
    ) -> None:
        """Converts what is not done yet, two at a time, and notes each in the journal.

        Args:
            items: by name, what to convert and how many bytes it is.
            convert: writes one item and returns its checksum.
        """
        total = sum(size for _, size in items.values())
        finished = sum(size for name, (_, size) in items.items() if name in self.done)
        report = progress or (lambda done, total: None)
        report(finished, total)
        with (
            (self.partial / _JOURNAL).open("a") as journal,
            ThreadPoolExecutor(THREADS) as pool,
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
                    "free disk space or mend what the message names, then run the same command "
                    "again: it goes on",
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def finish(self) -> str:
        """Writes the checksums, gives the directory its name and returns the checksum of all."""
        whole = checksum_of_all(self.done)
        sums = {"algorithm": "sha256", "whole": whole, "tensors": dict(sorted(self.done.items()))}
        write_json(self.partial / CHECKSUMS_FILE, sums)
        (self.partial / _JOURNAL).unlink()
        for directory in (self.partial, *(p for p in self.partial.rglob("*") if p.is_dir())):
            _sync(directory)
        if self.dest.exists():
            self.dest.rmdir()
        os.replace(self.partial, self.dest)
        _sync(self.dest.parent)
        return whole


def refuse_existing(dest: str | Path) -> None:
    """Raises InputError where something is at the destination already."""
    path = Path(dest)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(path, "exists and is not empty", "name a new directory")


class Checksum:
    """SHA-256 of arrays' bytes, one after the other."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, part: np.ndarray) -> None:
        self._digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)

    @property
    def value(self) -> str:
        return self._digest.hexdigest()


def checksum_of_all(checksums: dict[str, str]) -> str:
    """One checksum of a model: SHA-256 of the lines "CHECKSUM  NAME" by name."""
    lines = "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums))
    return hashlib.sha256(lines.encode()).hexdigest()


def recorded(directory: str | Path) -> dict[str, str]:
    """The checksums that a conversion left in a directory; none where there was none."""
    try:
        return json.loads((Path(directory) / CHECKSUMS_FILE).read_text())["tensors"]
    except (OSError, ValueError, KeyError):
        return {}


def recorded_whole(directory: str | Path) -> str:
    """The one checksum of all tensors that a conversion left in a directory."""
    return checksum_of_all(recorded(directory))


def compare(name: str, source: object, expected: dict[str, str], found: str) -> None:
    """Raises InputError where a tensor's checksum is not the recorded one."""
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
