"""A checkpoint's parameters piece by piece, for those who never hold a model: conversions.

Orbax writes everything about the tree of parameters, TensorStore their numbers. What is written
here `checkpoint.load_params` restores, and what a training run saved can be read here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from qa_jax.checkpoint import STEPS, Checkpoints
from qa_jax.errors import InputError
from qa_jax.model import Params, flatten


def create_arrays(
    directory: str | Path, arrays: Params, chunks: dict[tuple[str, ...], tuple[int, ...]]
) -> dict[tuple[str, ...], Any]:
    """Step 0 of a directory with parameters yet to be written, as TensorStore arrays by path.

    Args:
        directory: the checkpoint directory.
        arrays: shapes and types.
        chunks: the part of each that makes one file; written whole, it is written once. Every file
            ends in a CRC-32C, so that damage is an error when it is read.
    """
    steps = Path(directory).absolute() / STEPS
    context = ocp.Context()
    saving = context.array.saving
    saving.use_ocdbt = saving.use_compression = saving.enable_write_sharding_file = False
    saving.array_metadata_store = None
    # Orbax writes everything about the tree; of the arrays, only placeholders.
    placeholders = jax.tree.map(lambda x: jnp.zeros((1,) * len(x.shape), x.dtype), arrays)
    with _quietly(), context, ocp.training.Checkpointer(steps) as checkpointer:
        checkpointer.save_checkpointables(0, {"params": placeholders})
    made = {}
    for path, x in flatten(arrays).items():
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks[path]}}
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        metadata = {
            "shape": x.shape,
            "data_type": np.dtype(x.dtype).name,
            "chunk_grid": grid,
            "codecs": codecs,
        }
        spec = {**_array(steps / "0" / "params", path), "metadata": metadata}
        made[path] = _open({**spec, "create": True, "delete_existing": True})
    return made


def open_arrays(directory: str | Path, step: int) -> dict[tuple[str, ...], Any]:
    """The parameters of a step as TensorStore arrays by path, nothing read yet."""
    steps = Checkpoints(directory)
    paths = list(flatten(steps.saved(step)["params"]))
    steps.close()
    params = Path(directory).absolute() / STEPS / str(step) / "params"
    return {path: _open({**_array(params, path), "open": True}) for path in paths}


def _array(params: Path, path: tuple[str, ...]) -> dict[str, Any]:
    """TensorStore's spec of an array, as Orbax lays it out."""
    name = ".".join(path)
    zarr3 = json.loads((params / "_METADATA").read_text()).get("use_zarr3", False)
    store: dict[str, Any] = {"driver": "file", "path": f"{params}/{name}/"}
    if (params / "manifest.ocdbt").exists():
        store = {"driver": "ocdbt", "base": f"file://{params}/", "path": f"{name}/"}
    return {"driver": "zarr3" if zarr3 else "zarr", "kvstore": store}


def _open(spec: dict[str, Any]) -> Any:
    import tensorstore

    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
    try:
        return tensorstore.open(spec, context=context).result()
    except (ValueError, OSError) as error:
        kvstore = spec["kvstore"]
        raise InputError(
            kvstore.get("base", "") + kvstore["path"], f"cannot be opened ({error})"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Orbax's warning that there is nothing to merge where nothing is."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
