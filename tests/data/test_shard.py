"""ArrayRecord shards of a manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qa_jax.data import Processor
from qa_jax.data.shard import shard
from qa_jax.errors import InputError
from tests.data.datasets import make_dataset


def test_sharded_manifest_gives_the_same_batches(
    manifest: Path, processor: Processor, tmp_path: Path
) -> None:
    assert shard(manifest, tmp_path / "packed", shard_bytes=30_000) == (10, 6)
    plain, packed = (
        make_dataset(m, processor) for m in (manifest, tmp_path / "packed/manifest.jsonl")
    )
    for step in range(plain.steps_per_epoch):
        for x, y in zip(plain.batch(step), packed.batch(step), strict=True):
            np.testing.assert_array_equal(x, y)
    with pytest.raises(InputError, match="exists and is not empty"):
        shard(manifest, tmp_path / "packed")
    (tmp_path / "packed" / "clips-00001.array_record").unlink()
    with pytest.raises(InputError, match=r"clips-00001\.array_record: no such shard"):
        for step in range(packed.steps_per_epoch):
            make_dataset(tmp_path / "packed/manifest.jsonl", processor).batch(step)
