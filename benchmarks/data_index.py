"""Start of a training from the index of 0.1, 1 and 10 million records: seconds and memory.

python benchmarks/data_index.py --demo runs/demo --lengths MANIFEST    # after `make demo`

MANIFEST is JSONL with the "seconds" of real clips, whose distribution the made records follow. A
thousand records are made and indexed; the large manifests repeat them at random, with an index of
all their lines.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import soundfile
from common import replace_section

from qa_jax.config import DataConfig
from qa_jax.data import Processor, Tokenizer, TrainDataset, load_tokenizer
from qa_jax.data.index import COLUMNS, META, index_path
from qa_jax.data.index_builder import build_index

SIZES = (100_000, 1_000_000, 10_000_000)
BUCKETS = {504: 32, 1004: 16, 2004: 8, 3000: 8}
PACKED_BUCKETS = {504: 2, 1004: 2, 2004: 2, 3000: 2}
NUM_CLIPS, NUM_TEXTS = 40, 25


def make_base(directory: Path, lengths: Path, tokenizer: Path) -> Path:
    """A thousand records: clips of the lengths' quantiles, and texts as long as speech is."""
    seconds = sorted(
        row["seconds"]
        for row in map(json.loads, lengths.read_text().splitlines())
        if 0.1 < row["seconds"] <= 30
    )
    rng, words = np.random.default_rng(0), "the light in kitchen turn on quick brown fox is".split()
    lines = []
    for i, quantile in enumerate(np.quantile(seconds, np.linspace(0, 1, NUM_CLIPS))):
        noise = 0.01 * rng.standard_normal(int(quantile * 16_000))
        soundfile.write(directory / f"{i}.flac", noise, 16_000)
        for _ in range(NUM_TEXTS):
            text = " ".join(rng.choice(words, max(1, int(2.5 * quantile))))
            lines.append({"audio": f"{i}.flac", "prompt": "Transcribe.", "text": text})
    base = directory / "base.jsonl"
    base.write_text("".join(json.dumps(line) + "\n" for line in lines))
    processor = Processor(_tokenizer(tokenizer))
    build_index(base, processor)
    return base


def _tokenizer(directory: Path) -> Tokenizer:
    tokenizer = load_tokenizer(directory)
    assert tokenizer is not None
    return tokenizer


def make_large(base: Path, num_records: int) -> Path:
    """A manifest of so many records, drawn from the base's, and its index."""
    lines = np.array(base.read_text().splitlines(), object)
    columns = {name: np.load(f"{index_path(base)}/{name}.npy") for name in COLUMNS}
    drawn = np.random.default_rng(1).integers(0, len(lines), num_records)
    path = base.with_name(f"{num_records}.jsonl")
    with path.open("w") as file:
        for start in range(0, num_records, 100_000):
            file.write("\n".join(lines[drawn[start : start + 100_000]]) + "\n")
    # Each record has one clip, so that all columns have an entry a record.
    large = {name: column[drawn] for name, column in columns.items()}
    large["line"] = np.arange(1, num_records + 1, dtype=np.int32)
    large["offset"] = np.cumsum(large["length"] + 1, dtype=np.int64) - large["length"] - 1
    index = Path(index_path(path))
    index.mkdir(exist_ok=True)
    for name, column in large.items():
        np.save(index / f"{name}.npy", column)
    meta = json.loads((Path(index_path(base)) / META).read_text())
    meta |= {"manifest_bytes": path.stat().st_size, "records": num_records}
    (index / META).write_text(json.dumps(meta))
    (index / "errors.jsonl").write_text("")
    return path


def start(manifest: str, tokenizer: Path, packed_length: int) -> None:
    """In a process of its own: prints seconds to the plan and to the first batch, and GB."""
    began = time.perf_counter()
    buckets = PACKED_BUCKETS if packed_length else BUCKETS
    config = DataConfig(train=manifest, buckets=buckets, packed_length=packed_length)
    data = TrainDataset(config, Processor(_tokenizer(tokenizer)))
    planned = time.perf_counter() - began
    next(iter(data.iterate()))  # type: ignore[call-overload]
    seconds = time.perf_counter() - began
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps([planned, seconds, gigabytes, data.padding]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--start", nargs=2, metavar=("MANIFEST", "PACKED_LENGTH"))
    arguments = parser.parse_args()
    tokenizer = arguments.demo / "tokenizer"
    if arguments.start:
        start(arguments.start[0], tokenizer, int(arguments.start[1]))
        return
    lines = [
        "| records | rows | planned after | first batch after | memory of the process | padding |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        base = make_base(Path(name), arguments.lengths, tokenizer)
        for size in SIZES:
            manifest = make_large(base, size)
            for packed_length in (0, 2048):
                command = [sys.executable, __file__, "--demo", str(arguments.demo)]
                command += ["--start", str(manifest), str(packed_length)]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                planned, first, memory, padding = json.loads(printed.splitlines()[-1])
                rows = "packed, 2,048 tokens" if packed_length else "one record each"
                lines.append(
                    f"| {size:,} | {rows} | {planned:.1f} s | {first:.1f} s | {memory:.2f} GB "
                    f"| {padding:.1%} |"
                )
                print(lines[-1], flush=True)
            manifest.unlink()
    replace_section("data_index", lines)


if __name__ == "__main__":
    main()
