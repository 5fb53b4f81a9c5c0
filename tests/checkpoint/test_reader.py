"""Reading a directory that another process writes."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax import checkpoint
from qa_jax.checkpoint.array_store import create_arrays
from qa_jax.checkpoint.reader import all_steps, restore


def test_readers_leave_a_save_in_progress_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Orbax's manager deletes temporary directories when it opens; a reader must not."""
    steps = tmp_path / "run" / "checkpoints"
    checkpoint.create(tmp_path / "run", checkpoint.read_config(tiny_checkpoint), tiny_checkpoint)
    (steps / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    (steps / "5.orbax-checkpoint-tmp" / "data").write_text("half")
    (steps / "0").symlink_to(tiny_checkpoint / "checkpoints" / "0")
    before = sorted(p for p in tmp_path.rglob("*"))
    assert all_steps(tmp_path / "run") == [0]
    checkpoint.load_params(tmp_path / "run", checkpoint.read_config(tmp_path / "run"))
    assert checkpoint.find_step(tmp_path / "run") == 0
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_directories_may_be_relative(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orbax takes absolute paths only."""
    monkeypatch.chdir(tmp_path)
    config = checkpoint.read_config(tiny_checkpoint)
    params = checkpoint.load_params(tiny_checkpoint, config)
    checkpoint.create("run", config, tiny_checkpoint)
    checkpoint.save_params("run", params)
    found = checkpoint.load_params("run", config)  # reads the metadata, then the arrays
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_reading_creates_nothing(tmp_path: Path) -> None:
    assert all_steps(tmp_path / "none") == [] and not (tmp_path / "none").exists()


def test_chunks_of_zeros_are_stored(tmp_path: Path) -> None:
    """Zeros are the fill value, of which TensorStore by itself stores nothing, and Orbax then finds
    no array."""
    arrays = {"a": jax.ShapeDtypeStruct((4, 6), jnp.float32)}
    for store in create_arrays(tmp_path, arrays, {("a",): (2, 6)}).values():
        store.write(np.zeros((4, 6), np.float32)).result()
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {"a": jax.ShapeDtypeStruct((4, 6), jnp.float32, sharding=sharding)}
    found = restore(tmp_path, 0, params=abstract)["params"]["a"]
    np.testing.assert_array_equal(found, np.zeros((4, 6)))
