"""Seconds of audio a second that reach training, from ArrayRecord shards of FLAC, beside the same
clips through Hugging Face datasets and a PyTorch DataLoader.

python benchmarks/data_loading.py --lengths MANIFEST     # needs .[datasets] and torch

MANIFEST is JSONL with the "seconds" of real clips, whose distribution the made clips follow. Both
decode in two workers and return padded batches of waveforms; ours tokenizes and packs besides.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import soundfile
from common import cpu_name, replace_section

from qa_jax.config import DataConfig
from qa_jax.data import Processor, SentencePiece, TrainDataset
from qa_jax.data.shard import shard

NUM_CLIPS, ROWS, ROUNDS = 1_200, 16, 3


def make_clips(directory: Path, lengths: Path) -> Path:
    """FLAC files of the lengths' distribution, and their manifest."""
    rows = map(json.loads, lengths.read_text().splitlines())
    seconds = [row["seconds"] for row in rows if 0.1 < row["seconds"] <= 30]
    rng, lines = np.random.default_rng(0), []
    for i, length in enumerate(rng.choice(seconds, NUM_CLIPS)):
        tone = 0.3 * np.sin(np.cumsum(rng.uniform(0.05, 0.3, int(length * 16_000))))
        soundfile.write(directory / f"{i}.flac", tone, 16_000)
        lines.append(json.dumps({"audio": f"{i}.flac", "text": "the light in the kitchen"}) + "\n")
    path = directory / "train.jsonl"
    path.write_text("".join(lines))
    return path


def ours(manifest: Path, processor: Processor) -> Iterator[np.ndarray]:
    """An epoch of waveforms, from shards."""
    buckets = {504: ROWS, 1004: ROWS, 3000: ROWS}
    data = TrainDataset(DataConfig(train=str(manifest), buckets=buckets, num_threads=2), processor)
    batches = data.iterate()
    for _ in range(data.steps_per_epoch):
        waveform = next(batches).waveform
        assert waveform is not None
        yield waveform


def theirs(parquet: Path) -> Iterator[np.ndarray]:
    """The same from Parquet, decoded by soundfile, as their own decoder needs torchcodec."""
    import datasets
    import torch

    def decode(rows: dict) -> dict:
        cells = (soundfile.read(io.BytesIO(a["bytes"]), dtype="float32")[0] for a in rows["audio"])
        return {"audio": list(cells)}

    def collate(rows: list[dict]) -> np.ndarray:
        clips = [row["audio"] for row in rows]
        batch = np.zeros((len(clips), max(clip.size for clip in clips)), np.float32)
        for row, clip in zip(batch, clips, strict=True):
            row[: clip.size] = clip
        return batch

    dataset = datasets.load_dataset("parquet", data_files=str(parquet), split="train")
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False)).with_transform(decode)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=ROWS, shuffle=True, num_workers=2, collate_fn=collate
    )
    yield from loader


def main() -> None:
    import datasets

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        manifest = make_clips(directory, arguments.lengths)
        total = sum(soundfile.info(path).duration for path in directory.glob("*.flac"))
        shard(manifest, directory / "shards")
        cells = [{"bytes": (directory / f"{i}.flac").read_bytes()} for i in range(NUM_CLIPS)]
        table = datasets.Dataset.from_dict({"audio": cells})
        table.to_parquet(str(directory / "train.parquet"))
        words = ["the light in the kitchen"] * 50
        processor = Processor(SentencePiece.train(words, directory / "tokenizer", 300))
        speeds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(ROUNDS):
            for kind, batches in (
                ("ours", ours(directory / "shards" / "manifest.jsonl", processor)),
                ("theirs", theirs(directory / "train.parquet")),
            ):
                started = time.perf_counter()
                for _batch in batches:
                    pass
                speeds[kind].append(total / (time.perf_counter() - started))
    median = {kind: float(np.median(values)) for kind, values in speeds.items()}
    lines = [
        f"{cpu_name()}, {os.cpu_count()} cores; {NUM_CLIPS:,} clips, {total / 3600:.1f} hours, "
        f"median of {ROUNDS} interleaved epochs, each from opening the dataset on.",
        "",
        "| | seconds of audio a second |",
        "|---|---|",
        f"| qa_jax, ArrayRecord of FLAC | {median['ours']:,.0f} |",
        f"| Hugging Face datasets, Parquet of FLAC, 2 workers | {median['theirs']:,.0f} |",
        f"| ratio | {median['ours'] / median['theirs']:.2f} |",
    ]
    print("\n".join(lines))
    replace_section("data_loading", lines)


if __name__ == "__main__":
    main()
