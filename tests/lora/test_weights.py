"""Merging adapters."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qa_jax
from qa_jax.lora import LoraWeights, merge_lora
from qa_jax.lora.weights import add_layer_delta
from qa_jax.trees import flatten_dict
from tests.lora.adapters import random_adapter

pytestmark = pytest.mark.usefixtures("one_device")


def test_merge_and_unmerge(tiny_checkpoint: Path) -> None:
    loaded = qa_jax.load(tiny_checkpoint)
    adapter = random_adapter(loaded)
    before = jax.tree.map(np.array, loaded.params)
    there = jax.tree.map(np.array, merge_lora(loaded.params, adapter))
    back = flatten_dict(merge_lora(jax.tree.map(jnp.asarray, there), adapter, sign=-1.0))
    for path, x in flatten_dict(before).items():
        largest = max(np.abs(x).max(), np.abs(flatten_dict(there)[path]).max())
        assert np.abs(back[path] - x).max() <= 4 * np.finfo(np.float32).eps * largest, path


def test_merging_into_a_copy(tiny_checkpoint: Path) -> None:
    loaded = qa_jax.load(tiny_checkpoint)
    before = jax.tree.map(np.array, loaded.params)
    adapter = random_adapter(loaded)
    copy = flatten_dict(merge_lora(loaded.params, adapter, donate=False))
    kept = flatten_dict(loaded.params)
    for path, x in flatten_dict(before).items():
        np.testing.assert_array_equal(x, kept[path])
        assert (copy[path] is kept[path]) == (
            path[-1] != "kernel" or path[:-1] not in adapter.scales
        )
    whole = flatten_dict(merge_lora(loaded.params, adapter))
    for path, x in whole.items():
        np.testing.assert_array_equal(x, copy[path])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_merging_needs_the_memory_of_a_layer(dtype: jnp.dtype) -> None:
    """The kernel of 32 layers is updated in place: copies exist of a layer, not of the stack."""
    layers, width = 32, 256
    kernel = jax.random.normal(jax.random.key(0), (layers, width, width), dtype)
    a = jax.random.normal(jax.random.key(1), (layers, width, 4))
    b = jax.random.normal(jax.random.key(2), (layers, 4, width))
    stats = add_layer_delta.lower(kernel, a, b, 1.0, 0).compile().memory_analysis()
    assert stats.temp_size_in_bytes < 4 * width**2 * 4
    place, expected = kernel.unsafe_buffer_pointer(), np.array(kernel, np.float32)
    expected += 0.5 * np.einsum("lir,lro->lio", a, b)
    params = {"q": {"kernel": kernel}}
    adapter = LoraWeights({"q": {"lora_a": a, "lora_b": b}}, {("q",): 0.5})
    merged = merge_lora(params, adapter)["q"]["kernel"]
    assert merged.unsafe_buffer_pointer() == place and merged.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 2**-8
    np.testing.assert_allclose(np.array(merged, np.float32), expected, rtol=tolerance, atol=1e-5)
