"""Sizes and checksums of a training step's files.

Local files are read once for their CRC-32. Object storage tells its own checksums without reading.
"""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from qa_jax.checkpoint.directory import STEPS
from qa_jax.errors import InputError
from qa_jax.paths import AnyPath, is_remote, list_files, write_whole

CHECKSUMS = "checksums"
Checksum = list[int | str]
"""Size in bytes, and CRC-32 or the storage's own checksum."""


def checksum_file(directory: AnyPath, step: int) -> AnyPath:
    """Where a step's checksums are written."""
    return directory / CHECKSUMS / f"{step}.json"


def write_checksums(directory: AnyPath, step: int) -> None:
    """Records size and checksum of every file of a step."""
    root = directory / STEPS / str(step)
    found = _checksums(root, _files(root))
    path = checksum_file(directory, step)
    path.parent.mkdir(exist_ok=True)
    write_whole(path, json.dumps(found))


def delete_stale_checksums(directory: AnyPath) -> None:
    """Deletes the checksums of steps that are no longer kept."""
    for path in (directory / CHECKSUMS).glob("*.json"):
        if not (directory / STEPS / path.stem).exists():
            path.unlink()


def verify_checksums(directory: AnyPath, step: int) -> None:
    """Raises InputError naming the first file of a step that differs from what was saved.

    Of several processes, each reads its share of the files. A step without checksums, because the
    run was killed before they were written, is accepted.
    """
    path = checksum_file(directory, step)
    if not path.exists():
        return
    root = directory / STEPS / str(step)
    expected: dict[str, Checksum] = json.loads(path.read_text())
    mine = sorted(expected)[jax.process_index() :: jax.process_count()]
    present = set(_files(root))
    found = _checksums(root, [name for name in mine if name in present])
    for name in mine:
        if found.get(name) != expected[name]:
            cause = "is missing" if name not in found else "is damaged"
            raise InputError(root / name, cause)


def _files(root: AnyPath) -> list[str]:
    if is_remote(root):
        return sorted(list_files(root))
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def _checksums(root: AnyPath, names: list[str]) -> dict[str, Checksum]:
    if is_remote(root):
        listed = list_files(root)
        sums = {n: listed[n].get("crc32c") or listed[n].get("md5Hash") or "" for n in names}
        return {name: [int(listed[name]["size"]), sums[name]] for name in names}
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: _crc32(root / name), names), strict=True))


def _crc32(file: Path) -> Checksum:
    size = crc = 0
    with file.open("rb") as stream:
        while block := stream.read(2**24):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]
