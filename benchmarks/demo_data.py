"""What packing saves on the demo's records, and how long its training waited for data.

python benchmarks/demo_data.py --demo runs/demo        # after `make demo`
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from common import replace_section

from qa_jax.config import DataConfig, run_config
from qa_jax.data import Processor, TrainData, load_tokenizer
from qa_jax.train.metrics import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    demo = parser.parse_args().demo
    tokenizer = load_tokenizer(demo / "tokenizer")
    assert tokenizer is not None
    apart = run_config("configs/demo.yaml").data.buckets
    lines = ["| rows | token slots that hold nothing | steps an epoch |", "|---|---|---|"]
    for pack, buckets in (
        (0, apart),
        (512, dict.fromkeys(apart, 4)),
        (1024, dict.fromkeys(apart, 2)),
    ):
        config = DataConfig(
            train=str(demo / "data" / "train.jsonl"), buckets=buckets, pack_tokens=pack
        )
        data = TrainData(config, Processor(tokenizer))
        name = f"packed, {pack} tokens" if pack else "a row to a record"
        lines.append(f"| {name} | {data.padding:.1%} | {data.steps_per_epoch:,} |")
    lines.append("")
    for name, title in (("pretrained", "pre-training"), ("model", "fine-tuning")):
        # The first line counts compiling, too.
        waits = [m["data_wait"] for m in read_metrics(demo / name / "metrics.jsonl")][1:]
        mean = sum(waits) / len(waits)
        lines.append(f"Waiting for data in the demo's {title}: {mean:.1%} of the time.")
    print("\n".join(lines))
    replace_section("demo_data", lines)


if __name__ == "__main__":
    main()
