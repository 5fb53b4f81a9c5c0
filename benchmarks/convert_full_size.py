"""Converts a random checkpoint of the released size and layout, there and back.

    python benchmarks/convert_full_size.py --directory DIR [--small]

Writes 876 tensors in 5 files (16.8 GB) into DIR, copies them, converts them to ours, verifies,
converts back and compares, each in a process of its own whose peak memory and time are printed.
Needs 70 GB free; what it wrote is deleted as soon as it is no longer needed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import ml_dtypes
import numpy as np
from common import cpu_name, replace_section
from convert_weights.shards import Entry, Shards

from qa_jax.config import preset, to_hf
from qa_jax.hf import TensorSpec, tensor_map

COMMAND = [sys.executable, "-m", "qa_jax.cli"]


def write_random(directory: Path, name: str, limit: int) -> int:
    """A random bfloat16 checkpoint of a preset, a few tensors in memory; returns its bytes."""
    directory.mkdir(parents=True)
    config = preset(name)
    tensors = tensor_map(config)
    entries = {n: Entry(t.hf_shape, np.dtype(ml_dtypes.bfloat16)) for n, t in tensors.items()}
    shards = Shards(directory, entries, limit)
    shards.create()
    for tensor in tensors.values():
        shards.write(tensor.hf, random_blocks(tensor))
    shards.finish()
    (directory / "config.json").write_text(json.dumps(to_hf(config)))
    return shards.size


def random_blocks(tensor: TensorSpec) -> Iterator[np.ndarray]:
    """Random values of both signs between 2^-7 and 2^-5, with random fractions.

    They depend on the parameter's path and layer only, so that a tied head repeats the embedding.
    """
    rng = np.random.default_rng(zlib.crc32(f"{tensor.path} {tensor.layer}".encode()))
    for rows, _ in tensor.blocks():
        shape = (rows.stop - rows.start, *tensor.hf_shape[1:])
        bits = rng.integers(0, 2**16, shape, np.uint16)
        yield ((bits & 0x80FF) | 0x3C00).view(ml_dtypes.bfloat16)


def measure(rows: list[str], title: str, command: list[str], copy_seconds: float = 0.0) -> float:
    """Runs a command; appends a table row with its time and peak resident memory."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    output = process.stdout.read().decode().strip().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"{title} failed: {' '.join(command)}")
    ratio = f"{seconds / copy_seconds:.2f}" if copy_seconds else "1"
    peak = usage.ru_maxrss * 1024 / 1e9  # Linux counts kibibytes
    rows.append(f"| {title} | {seconds:.0f} s | {ratio} | {peak:.2f} GB |")
    print(rows[-1], *output[-1:])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="the demo's size, to test the script")
    arguments = parser.parse_args()
    root = arguments.directory
    root.mkdir(parents=True, exist_ok=True)
    name = "demo" if arguments.small else "qwen2_audio_7b"
    limit = 500_000 if arguments.small else 3_990_000_000  # the release has five files
    size = write_random(root / "hf", name, limit)
    files = sorted(p.name for p in (root / "hf").glob("*.safetensors"))
    rows = [
        f"{date.today()}, {cpu_name()}, {os.cpu_count()} cores. A random bfloat16 "
        f"checkpoint: {size:,} bytes of tensors in {len(files)} files.",
        "",
        "| command | time | relative to copying | peak memory |",
        "|---|---|---|---|",
    ]
    os.sync()
    # With sync: conversions write to the disk as well, not only to the page cache.
    copy = f"cp -r {root / 'hf'} {root / 'copy'} && sync"
    copy_seconds = measure(rows, "`cp -r` and `sync`", ["sh", "-c", copy])
    shutil.rmtree(root / "copy")
    qa_jax, back = str(root / "qa_jax"), str(root / "back")
    convert = [*COMMAND, "convert"]
    measure(
        rows,
        "`qa-jax convert to-jax`",
        [*convert, "to-jax", str(root / "hf"), qa_jax],
        copy_seconds,
    )
    measure(
        rows,
        "`qa-jax convert verify`",
        [*convert, "verify", str(root / "hf"), qa_jax],
        copy_seconds,
    )
    size_option = ["--shard-size", str(limit)]
    measure(
        rows,
        "`qa-jax convert to-hf`",
        [*convert, "to-hf", qa_jax, back, *size_option],
        copy_seconds,
    )
    shutil.rmtree(qa_jax)
    same = all(
        subprocess.run(["cmp", "-s", root / "hf" / f, root / "back" / f], check=False).returncode
        == 0
        for f in files
    )
    rows += [
        "",
        f"After both conversions the files are {'identical' if same else 'NOT identical'}.",
    ]
    print(rows[-1])
    if not arguments.small:
        replace_section("convert_full_size", rows)
    for name in ("hf", "back"):
        shutil.rmtree(root / name)
    sys.exit(not same)


if __name__ == "__main__":
    main()
