"""Sizes and CRC-32 checksums of a training step's files."""

from __future__ import annotations

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qa_jax.checkpoint.directory import STEPS
from qa_jax.errors import InputError

CHECKSUMS = "checksums"


def checksum_file(directory: Path, step: int) -> Path:
    """Where a step's checksums are written."""
    return directory / CHECKSUMS / f"{step}.json"


def write_checksums(directory: Path, step: int) -> None:
    """Records size and CRC-32 of every file of a step."""
    found = _checksums(directory / STEPS / str(step))
    path = checksum_file(directory, step)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{step}.partial")
    partial.write_text(json.dumps(found))
    os.replace(partial, path)


def delete_stale_checksums(directory: Path) -> None:
    """Deletes the checksums of steps that are no longer kept."""
    for path in (directory / CHECKSUMS).glob("*.json"):
        if not (directory / STEPS / path.stem).exists():
            path.unlink()


def verify_checksums(directory: Path, step: int) -> None:
    """Raises InputError naming the first file of a step that differs from what was saved.

    A step without checksums, because the run was killed before they were written, is accepted.
    """
    path = checksum_file(directory, step)
    if not path.is_file():
        return
    root = directory / STEPS / str(step)
    found = _checksums(root)
    for name, expected in json.loads(path.read_text()).items():
        if found.get(name) != expected:
            cause = "is missing" if name not in found else "is damaged"
            raise InputError(root / name, cause)


def _checksums(root: Path) -> dict[str, list[int]]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(_checksum, files)
    return {str(f.relative_to(root)): s for f, s in zip(files, found, strict=True)}


def _checksum(file: Path) -> list[int]:
    size = crc = 0
    with file.open("rb") as stream:
        while block := stream.read(2**24):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
