"""LoRA adapters between PEFT's format and qa_jax's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convert_weights.hub import resolve_source
from convert_weights.job import refuse_existing
from qa_jax import checkpoint, hf
from qa_jax.config import ModelConfig, from_hf, read_json
from qa_jax.errors import InputError


def adapter_to_jax(source: str | Path, dest: str | Path, base: str | Path | None = None) -> None:
    """Converts an adapter saved by PEFT.

    Args:
        source: its directory.
        dest: the new directory.
        base: its base model, whose configuration is read: a directory of either kind or a hub id;
            by default the one in adapter_config.json.
    """
    path = Path(source) / "adapter_config.json"
    base = base or read_json(path).get("base_model_name_or_path")
    if not base:
        raise InputError(path, "does not name its base model", "name it with --base")
    config = _config(base)
    adapter = hf.read_peft(source, config)
    with _atomic_directory(dest) as partial:
        checkpoint.save_adapter(partial, adapter, config, str(base))


def adapter_to_hf(
    source: str | Path,
    dest: str | Path,
    base: str | Path | None = None,
    step: int | None = None,
) -> None:
    """Converts a qa_jax adapter into PEFT's format; its latest training step by default."""
    adapter, config = checkpoint.load_adapter(source, step)
    with _atomic_directory(dest) as partial:
        hf.write_peft(partial, adapter, config.model, str(base or config.base))


def _config(base: str | Path) -> ModelConfig:
    found = resolve_source(base, weights=False)
    if checkpoint.is_checkpoint(found):
        return checkpoint.read_config(found)
    path = found / "config.json"
    return from_hf(read_json(path), path)


@contextmanager
def _atomic_directory(dest: str | Path) -> Iterator[Path]:
    """A directory beside `dest` that is renamed to it if the block raises nothing."""
    refuse_existing(dest)
    final = Path(dest).absolute()
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if final.exists():
        final.rmdir()
    os.replace(partial, final)
