"""The steps of a checkpoint directory, saved and restored by Orbax.

`qa_jax.checkpoint.array_store` reads and writes the same files array by array.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from qa_jax.checkpoint.checksums import (
    checksum_file,
    delete_stale_checksums,
    verify_checksums,
    write_checksums,
)
from qa_jax.checkpoint.directory import STEPS
from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from qa_jax.model import Qwen2Audio, param_specs
from qa_jax.parallel import barrier, is_main_process, sharding
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import DType, Params, PyTree


def abstract_params(
    model: Qwen2Audio, mesh: Mesh | None = None, dtype: DType = jnp.float32
) -> Params:
    """The parameters' shapes, dtypes and shardings: on the mesh, or on one device without one.

    `dtype` is that of parameters for which the model declares none.
    """
    one_device = SingleDeviceSharding(jax.local_devices()[0])
    flat = {}
    for path, spec in param_specs(model).items():
        placed: jax.sharding.Sharding = one_device
        if mesh is not None:
            placed = sharding(mesh, spec.axes, spec.shape, "/".join(path))
        flat[path] = jax.ShapeDtypeStruct(spec.shape, spec.dtype or dtype, sharding=placed)
    return unflatten_dict(flat)


_StorageOptions = ocp.options.ArrayOptions.Saving.StorageOptions


def _chunk_by_layer(path: Sequence[object], value: Any) -> object | None:
    """Stores large stacked parameters in chunks of at most a layer, so that `array_store` can read
    one layer without the others."""
    stacked = any(getattr(k, "key", None) == "layers" for k in path)
    if not stacked or getattr(value, "nbytes", 0) < 2**26:
        return None
    return _StorageOptions(chunk_byte_size=value.nbytes // value.shape[0], shard_axes=(0,))


class CheckpointManager:
    """The steps of a checkpoint directory.

    Args:
        directory: the checkpoint directory.
        max_to_keep: number of latest steps that are kept; None for all.
        keep_period: steps that are multiples of this are kept as well.
    """

    def __init__(
        self, directory: str | Path, max_to_keep: int | None = None, keep_period: int = 0
    ) -> None:
        policies = ocp.training.preservation_policies
        preserve = [policies.LatestN(max_to_keep) if max_to_keep else policies.PreserveAll()]
        if keep_period:
            preserve.append(policies.EveryNSteps(keep_period))
        self.directory = Path(directory).absolute()
        context = ocp.Context()
        context.array.saving.scoped_storage_options_creator = _chunk_by_layer
        self._checkpointer = ocp.training.Checkpointer(
            self.directory / STEPS,
            save_decision_policy=ocp.training.save_decision_policies.AnySavePolicy([]),
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            cleanup_tmp_directories=True,
            context=context,
        )
        self._pending: int | None = None

    def latest_step(self) -> int | None:
        """The newest complete step."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def all_steps(self) -> list[int]:
        """All complete steps, in ascending order."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def find(self, step: int | None = None) -> int:
        """The latest complete step, or `step`; raises InputError if there is no such step."""
        steps = self.all_steps()
        if not steps:
            raise InputError(
                self.directory, "has no complete checkpoint", "let training save a step first"
            )
        if step is not None and step not in steps:
            raise InputError(self.directory, f"has no step {step}", f"choose from {steps}")
        return steps[-1] if step is None else step

    def save(self, step: int, params: Params, **state: PyTree) -> None:
        """Saves in the background; a step gets its name only when it is complete.

        Raises InputError if this step, or the one before, cannot be written.
        """
        with self._handle_errors(step):
            trees = {"params": params, **state}
            self._checkpointer.save_checkpointables_async(step, trees, force=True)
        self._pending = step

    @contextmanager
    def _handle_errors(self, step: int) -> Iterator[None]:
        try:
            self._finish_pending()
            yield
        except (OSError, ValueError, RuntimeError) as error:
            good = [s for s in self.all_steps() if s != step]
            last = f"the last good one is step {good[-1]}" if good else "there is none before"
            raise InputError(
                self.directory / STEPS,
                f"a checkpoint cannot be written ({' '.join(str(error).split())}); {last}",
                "free disk space and run the same command again: it resumes",
            ) from error

    def _finish_pending(self) -> None:
        """Waits for the save in progress, and records the checksums of its files."""
        self._checkpointer.wait()
        if self._pending is not None and is_main_process():
            write_checksums(self.directory, self._pending)
            delete_stale_checksums(self.directory)
        self._pending = None

    def metadata(self, step: int) -> dict[str, PyTree]:
        """A step's trees of shapes and dtypes, without reading arrays."""
        return self._checkpointer.checkpointables_metadata(step).metadata

    def restore(self, step: int, **abstract: PyTree) -> dict[str, PyTree]:
        """The named trees of a step, with the shapes, dtypes and shardings of `abstract`."""
        try:
            return self._checkpointer.load_checkpointables(step, abstract)
        except Exception as error:  # a damaged file raises many types in the libraries below
            path = self.directory / STEPS / str(step)
            text = " ".join(str(error).split())
            raise InputError(path, f"cannot be restored ({text})", "use another step") from error

    def restore_latest(self, **abstract: PyTree) -> tuple[int, dict[str, PyTree]] | None:
        """The newest step without damaged files, as `restore` gives it; None if none was saved.

        A damaged step is named in a warning and quarantined in DIR/damaged. Raises InputError if
        all steps are damaged.
        """
        steps = self.all_steps()
        for step in reversed(steps):
            try:
                verify_checksums(self.directory, step)
            except InputError as error:
                warnings.warn(f"{error}: using the checkpoint before", stacklevel=2)
                self._quarantine(step)
            else:
                return step, self.restore(step, **abstract)
        if steps:
            raise InputError(
                self.directory, "all checkpoints are damaged", "name another train.output_dir"
            )
        return None

    def _quarantine(self, step: int) -> None:
        barrier("damaged")
        if is_main_process():
            quarantine = self.directory / "damaged"
            quarantine.mkdir(exist_ok=True)
            shutil.rmtree(quarantine / str(step), ignore_errors=True)
            os.replace(self.directory / STEPS / str(step), quarantine / str(step))
            checksum_file(self.directory, step).unlink()
        barrier("quarantined")
        self._checkpointer.reload()

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        with self._handle_errors(self._pending or 0):
            pass

    def close(self) -> None:
        """Waits for the save in progress, then closes the directory."""
        self.wait()
        self._checkpointer.close()


def find_step(directory: str | Path, step: int | None = None) -> int:
    """See `CheckpointManager.find`."""
    manager = CheckpointManager(directory)
    found = manager.find(step)
    manager.close()
    return found


def load_params(
    directory: str | Path,
    config: ModelConfig,
    mesh: Mesh | None = None,
    dtype: DType = None,
    step: int | None = None,
) -> Params:
    """Parameters of the latest step (or of `step`), each device reading its own shards.

    `dtype` None keeps the stored dtypes.
    """
    manager = CheckpointManager(directory)
    found = manager.find(step)
    abstract = flatten_dict(abstract_params(Qwen2Audio(config), mesh))
    stored = flatten_dict(manager.metadata(found)["params"]) if dtype is None else {}
    abstract = unflatten_dict(
        {
            path: jax.ShapeDtypeStruct(
                x.shape, stored[path].dtype if dtype is None else dtype, sharding=x.sharding
            )
            for path, x in abstract.items()
        }
    )
    params = manager.restore(found, params=abstract)["params"]
    manager.close()
    return params


def save_params(directory: str | Path, params: Params) -> None:
    """Saves parameters alone, as step 0 of a directory made by `create`."""
    manager = CheckpointManager(directory)
    manager.save(0, params)
    manager.close()
