"""Writing the steps of a checkpoint directory, by Orbax, in the background.

`qa_jax.checkpoint.reader` reads them, and `qa_jax.checkpoint.array_store` reads and writes the same
files array by array.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
from orbax.checkpoint import v1 as ocp

from qa_jax.checkpoint import reader
from qa_jax.checkpoint.checksums import (
    checksum_file,
    delete_stale_checksums,
    verify_checksums,
    write_checksums,
)
from qa_jax.checkpoint.directory import STEPS
from qa_jax.errors import InputError
from qa_jax.parallel import barrier, gather_texts, is_main_process
from qa_jax.paths import PathLike, as_path, is_remote
from qa_jax.typing import Params, PyTree

_LOST = re.compile(
    r"gloo|nccl|coordination service|heartbeat|connection (reset|closed) by peer", re.IGNORECASE
)
"""Errors of a lost process, which Orbax's threads raise as other types."""
_StorageOptions = ocp.options.ArrayOptions.Saving.StorageOptions


def _chunk_by_layer(path: Sequence[object], value: Any) -> object | None:
    """Stores large stacked parameters in chunks of at most a layer, so that `array_store` can read
    one layer without the others."""
    stacked = any(getattr(k, "key", None) == "layers" for k in path)
    if not stacked or getattr(value, "nbytes", 0) < 2**26:
        return None
    return _StorageOptions(chunk_byte_size=value.nbytes // value.shape[0], shard_axes=(0,))


@runtime_checkable
class _Saved(Protocol):
    """What Orbax tells a policy about a checkpoint."""

    step: int


class _KeptStep(ocp.training.preservation_policies.PreservationPolicy):
    """Preserves the step that a manager names at the time."""

    def __init__(self, manager: CheckpointManager) -> None:
        self._manager = manager

    def should_preserve(self, checkpoints: Sequence[_Saved], *, context: object) -> list[bool]:
        return [checkpoint.step == self._manager.kept_step for checkpoint in checkpoints]


class CheckpointManager:
    """The steps of a checkpoint directory that this job writes; as a context manager, it waits for
    the save in progress however the context is left.

    There may be one manager of a directory at a time: opening it deletes what an interrupted save
    left. Readers use `qa_jax.checkpoint.reader`.

    Args:
        directory: the checkpoint directory.
        max_to_keep: number of latest steps that are kept; None for all.
        keep_period: steps that are multiples of this are kept as well.

    Attributes:
        kept_step: a step that is kept as well.
    """

    def __init__(
        self, directory: PathLike, max_to_keep: int | None = None, keep_period: int = 0
    ) -> None:
        policies = ocp.training.preservation_policies
        preserve = [policies.LatestN(max_to_keep) if max_to_keep else policies.PreserveAll()]
        preserve.append(_KeptStep(self))
        self.kept_step: int | None = None
        if keep_period:
            preserve.append(policies.EveryNSteps(keep_period))
        directory = as_path(directory)
        self.directory = directory if is_remote(directory) else directory.absolute()
        context = ocp.Context()
        context.array.saving.scoped_storage_options_creator = _chunk_by_layer
        self._checkpointer = ocp.training.Checkpointer(
            self.directory / STEPS,
            save_decision_policy=ocp.training.save_decision_policies.AnySavePolicy([]),
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            cleanup_tmp_directories=True,
            context=context,
        )
        self._background = ThreadPoolExecutor(1)
        self._checksums: Future[None] | None = None
        self._pending: int | None = None

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except InputError as failed:
            if error is None:
                raise
            warnings.warn(str(failed), stacklevel=2)  # what ended the run is told first

    def all_steps(self) -> list[int]:
        """All complete steps, in ascending order."""
        return sorted(c.step for c in self._checkpointer.checkpoints)

    def save(self, step: int, params: Params, **state: PyTree) -> None:
        """Saves in the background; a step gets its name only when it is complete.

        Raises InputError if this step, or the one before, cannot be written.
        """
        with self._handle_errors(step):
            self._finish_pending()
            trees = {"params": params, **state}
            response = self._checkpointer.save_checkpointables_async(step, trees, force=True)
        self._pending = step
        if is_main_process():
            self._checksums = self._background.submit(self._record_checksums, step, response)

    def _record_checksums(self, step: int, response: Any) -> None:
        """Waits for a save, and reads its files once, while training goes on."""
        try:
            response.result()
        except Exception:  # raised again, and reported, by the main thread's wait
            return
        write_checksums(self.directory, step)
        delete_stale_checksums(self.directory)

    @contextmanager
    def _handle_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) or _LOST.search(str(error)):
                # Of the devices or of another process, not of storage.
                raise jax.errors.JaxRuntimeError(" ".join(str(error).split())) from error
            good = [s for s in self.all_steps() if s != step]
            last = f"the last good one is step {good[-1]}" if good else "there is none before"
            text = " ".join(str(error).split())
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
                words in text for words in ("No space left", "RESOURCE_EXHAUSTED", "quota")
            )
            remedy = "free disk space" if full else "remove the cause"
            raise InputError(
                self.directory / STEPS,
                f"a checkpoint cannot be written ({text}); {last}",
                f"{remedy} and run the same command again: it resumes",
            ) from error

    def _finish_pending(self) -> None:
        """Waits for the save in progress, and for its checksums."""
        self._checkpointer.wait()
        if self._checksums is not None:
            self._checksums.result()
        self._checksums = self._pending = None

    def restore_latest(self, **abstract: PyTree) -> tuple[int, dict[str, PyTree]] | None:
        """The newest step without damaged files, as `reader.restore` gives it; None if none was
        saved.

        A damaged step is named in a warning and moved to DIR/damaged. Raises InputError if all
        steps are damaged.
        """
        steps = self.all_steps()
        for step in reversed(steps):
            # Each process reads its share of the files.
            found = [text for text in gather_texts(self._damage(step)) if text]
            if not found:
                return step, reader.restore(self.directory, step, **abstract)
            warnings.warn(f"{found[0]}: using the checkpoint before", stacklevel=2)
            self.set_aside(step, "damaged")
        if steps:
            raise InputError(
                self.directory, "all checkpoints are damaged", "name another train.output_dir"
            )
        return None

    def _damage(self, step: int) -> str:
        try:
            verify_checksums(self.directory, step)
        except InputError as error:
            return str(error)
        return ""

    def set_aside(self, step: int, folder: str) -> None:
        """Puts a step into DIR/`folder`, where it is no checkpoint of this directory any more."""
        barrier("setting aside")
        if is_main_process():
            destination = self.directory / folder
            destination.mkdir(exist_ok=True)
            before, after = self.directory / STEPS / str(step), destination / str(step)
            if is_remote(self.directory):
                before.rename(after)  # copies every object
            else:
                shutil.rmtree(after, ignore_errors=True)
                os.replace(before, after)
            checksum_file(self.directory, step).unlink(missing_ok=True)
        barrier("set aside")
        self._checkpointer.reload()

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        with self._handle_errors(self._pending or 0):
            self._finish_pending()

    def close(self) -> None:
        """Waits for the save in progress, then closes the directory."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            self._checkpointer.close()


def save_params(directory: PathLike, params: Params) -> None:
    """Saves parameters alone, as step 0 of a directory made by `create`."""
    with CheckpointManager(directory) as manager:
        manager.save(0, params)
