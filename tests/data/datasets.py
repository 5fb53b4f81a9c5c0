"""Datasets of the tests' manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qa_jax.config import DataConfig
from qa_jax.data import Processor, TrainDataset

BUCKETS = {0: 2, 104: 2, 204: 4}


def make_dataset(
    manifest: Path | dict[str, float],
    processor: Processor,
    num_batch_shards: int = 1,
    grad_accum_steps: int = 1,
    **settings: Any,
) -> TrainDataset:
    settings = {"buckets": BUCKETS, "max_tokens": 400, **settings}
    config = DataConfig(train=manifest if isinstance(manifest, dict) else str(manifest), **settings)
    return TrainDataset(
        config, processor, num_batch_shards=num_batch_shards, grad_accum_steps=grad_accum_steps
    )
