"""What we export, transformers loads: nothing missing, nothing unexpected, the same answers."""

from __future__ import annotations

from pathlib import Path

import convert_weights
import numpy as np
import pytest

from tests.parity.conftest import as_torch, random_batch, random_reference, save


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_export_loads(seed: int, shard_size: str, tmp_path: Path) -> None:
    import torch
    from transformers import Qwen2AudioForConditionalGeneration

    model = random_reference(seed)
    batch = random_batch(model, seed)
    convert_weights.to_jax(save(model, tmp_path / "hf"), tmp_path / "ours")
    convert_weights.to_hf(tmp_path / "ours", tmp_path / "back", shard_size)
    again, info = Qwen2AudioForConditionalGeneration.from_pretrained(
        tmp_path / "back", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tensors = as_torch(batch, torch.float32)
    with torch.no_grad():
        np.testing.assert_array_equal(model(**tensors).logits, again(**tensors).logits)
