"""Damaged checkpoints and full disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import jax
import pytest

from qa_jax import checkpoint
from qa_jax.errors import InputError
from qa_jax.train import train
from tests.runs import at, config, losses, one_device_mesh


def test_damaged_checkpoint_is_quarantined(
    job_settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_device_mesh(monkeypatch)
    straight = at(job_settings, tmp_path / "straight")
    train(config(straight))
    damaged = at(job_settings, tmp_path / "run")
    train(config(damaged, "--train.steps=4"))
    files = (tmp_path / "run" / "checkpoints" / "4").rglob("d/*")
    largest = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    with pytest.warns(
        UserWarning, match=rf"{largest.name}: is damaged: using the checkpoint before"
    ):
        train(config(damaged))
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_full_disk_keeps_the_last_good_checkpoint(
    job_settings: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_device_mesh(monkeypatch)
    full = at(job_settings, tmp_path / "run")
    train(config(full, "--train.steps=2"))

    class Full:
        """Orbax's checkpointer on a disk that is full from now on."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def save_checkpointables_async(self, *_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    plain = checkpoint.CheckpointManager.__init__

    def on_a_full_disk(self: checkpoint.CheckpointManager, *arguments: Any) -> None:
        plain(self, *arguments)
        self._checkpointer = Full(self._checkpointer)

    monkeypatch.setattr(checkpoint.CheckpointManager, "__init__", on_a_full_disk)
    with pytest.raises(InputError, match=r"No space left.*the last good one is step 2.*resumes"):
        train(config(full))
    monkeypatch.setattr(checkpoint.CheckpointManager, "__init__", plain)
    train(config(full))
    train(config(at(job_settings, tmp_path / "straight")))
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_only_a_full_disk_asks_for_space(tiny_checkpoint: Path, tmp_path: Path) -> None:
    params = {"a": jax.numpy.ones(3)}
    with checkpoint.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, params)
        with pytest.raises(InputError) as found:
            manager.save(1, {"a": object()})  # type: ignore[dict-item]
        assert "free disk space" not in str(found.value)
        assert "the last good one is step 1" in str(found.value) or "before" in str(found.value)


def test_an_error_of_a_save_does_not_hide_what_ended_the_run(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        pytest.warns(UserWarning, match="cannot be written"),
        checkpoint.CheckpointManager(tmp_path / "run") as manager,
    ):
        manager._checkpointer = Broken(manager._checkpointer)  # type: ignore[assignment]
        raise ZeroDivisionError


class Broken:
    """A checkpointer whose save in progress fails."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def wait(self) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
