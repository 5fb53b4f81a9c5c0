"""Padding of the demo's batches with and without packing, and its waiting for data.

python benchmarks/demo_data.py --demo runs/demo        # after `make demo`
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from common import replace_section

from qa_jax.config import DataConfig, load_run_config
from qa_jax.data import Processor, TrainDataset, load_tokenizer
from qa_jax.train.metrics import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    demo = parser.parse_args().demo
    tokenizer = load_tokenizer(demo / "tokenizer")
    assert tokenizer is not None
    unpacked = load_run_config("configs/demo.yaml").data.buckets
    lines = ["| rows | padding fraction | steps per epoch |", "|---|---|---|"]
    for packed_length, buckets in (
        (0, unpacked),
        (512, dict.fromkeys(unpacked, 4)),
        (1024, dict.fromkeys(unpacked, 2)),
    ):
        config = DataConfig(
            train=str(demo / "data" / "train.jsonl"), buckets=buckets, packed_length=packed_length
        )
        data = TrainDataset(config, Processor(tokenizer))
        name = f"packed, {packed_length} tokens" if packed_length else "one record per row"
        lines.append(f"| {name} | {data.padding:.1%} | {data.steps_per_epoch:,} |")
    lines.append("")
    for name, title in (("pretrained", "pre-training"), ("model", "fine-tuning")):
        # The first line includes compilation.
        waits = [m["data_wait"] for m in read_metrics(demo / name / "metrics.jsonl")][1:]
        mean = sum(waits) / len(waits)
        lines.append(f"Data wait in the demo's {title}: {mean:.1%} of the time.")
    print("\n".join(lines))
    replace_section("demo_data", lines)


if __name__ == "__main__":
    main()
