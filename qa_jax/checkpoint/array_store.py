"""Streaming access to a checkpoint's arrays, for conversions that never load a whole model.

Orbax writes the metadata of the tree of parameters, TensorStore the arrays. `load_params` restores
what is written here, and a training run's checkpoint can be read here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from qa_jax.checkpoint.directory import STEPS
from qa_jax.checkpoint.reader import step_metadata
from qa_jax.config import JsonDict
from qa_jax.errors import InputError
from qa_jax.paths import PathLike, is_remote
from qa_jax.trees import flatten_dict
from qa_jax.typing import ParamPath, Params

if TYPE_CHECKING:
    from tensorstore import TensorStore


def create_arrays(
    directory: PathLike, arrays: Params, chunks: dict[ParamPath, tuple[int, ...]]
) -> dict[ParamPath, TensorStore]:
    """Step 0 of a directory with arrays that are still to be written, by path.

    Args:
        directory: the checkpoint directory.
        arrays: shapes and dtypes.
        chunks: chunk shape of each; every chunk is one file, which ends with a CRC-32C, so that
            reading a damaged one is an error.
    """
    steps = _local(directory) / STEPS
    context = ocp.Context()
    saving = context.array.saving
    saving.use_ocdbt = saving.use_compression = saving.enable_write_sharding_file = False
    saving.array_metadata_store = None
    # Orbax writes the tree's metadata; its arrays are placeholders.
    placeholders = jax.tree.map(lambda x: jnp.zeros((1,) * len(x.shape), x.dtype), arrays)
    with _without_orbax_warnings(), context, ocp.training.Checkpointer(steps) as checkpointer:
        checkpointer.save_checkpointables(0, {"params": placeholders})
    created = {}
    for path, x in flatten_dict(arrays).items():
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks[path]}}
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        metadata = {
            "shape": x.shape,
            "data_type": np.dtype(x.dtype).name,
            "chunk_grid": grid,
            "codecs": codecs,
        }
        spec = {**_array_spec(steps / "0" / "params", path), "metadata": metadata}
        # A chunk of zeros, the fill value, would otherwise have no file, which cannot be restored.
        spec["store_data_equal_to_fill_value"] = True
        created[path] = _open({**spec, "create": True, "delete_existing": True})
    return created


def open_arrays(directory: PathLike, step: int) -> dict[ParamPath, TensorStore]:
    """A step's parameters by path, opened but not read."""
    paths = list(flatten_dict(step_metadata(directory, step)["params"]))
    params = _local(directory) / STEPS / str(step) / "params"
    return {path: _open({**_array_spec(params, path), "open": True}) for path in paths}


def _local(directory: PathLike) -> Path:
    if is_remote(directory):
        raise InputError(directory, "conversions are between local directories", "copy it first")
    return Path(directory).absolute()


def _array_spec(params: Path, path: ParamPath) -> JsonDict:
    """TensorStore's spec of an array in Orbax's layout."""
    name = ".".join(path)
    zarr3 = json.loads((params / "_METADATA").read_text()).get("use_zarr3", False)
    store: JsonDict = {"driver": "file", "path": f"{params}/{name}/"}
    if (params / "manifest.ocdbt").exists():
        store = {"driver": "ocdbt", "base": f"file://{params}/", "path": f"{name}/"}
    return {"driver": "zarr3" if zarr3 else "zarr", "kvstore": store}


def _open(spec: JsonDict) -> TensorStore:
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
def _without_orbax_warnings() -> Iterator[None]:
    """Silences Orbax's warning that a new directory has nothing to merge."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
