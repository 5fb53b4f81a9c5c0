"""A model's weights from whatever holds them: our checkpoints and adapters, Hugging Face's files,
PEFT's adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from qa_jax import checkpoint, hf
from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from qa_jax.model import Adapter, Params, Qwen2Audio, merge


def read_config(directory: str | Path) -> ModelConfig:
    """The configuration of the model in a directory: a checkpoint or an adapter of ours, or
    Hugging Face's. Raises InputError where it is none of them."""
    if checkpoint.is_checkpoint(directory):
        return checkpoint.read_config(directory)
    if checkpoint.is_adapter(directory):
        return checkpoint.read_adapter(directory).model
    if _is_hugging_face(directory):
        return hf.open_model(directory)[0]
    raise InputError(
        directory,
        "holds neither config.yaml (a qa_jax checkpoint), adapter.yaml (an adapter of ours) nor "
        "config.json (Hugging Face's)",
        "name a checkpoint's directory",
    )


def _is_hugging_face(directory: str | Path) -> bool:
    ours = checkpoint.is_checkpoint(directory) or checkpoint.is_adapter(directory)
    return not ours and (Path(directory) / "config.json").is_file()


def load_weights(
    directory: str | Path, mesh: Mesh | None = None, dtype: Any = None, step: int | None = None
) -> tuple[ModelConfig, Params]:
    """The model in a directory, each device reading its own part.

    Args:
        directory: see `read_config`. An adapter is merged into the model that it names.
        mesh: where the parameters shall lie; one device without.
        dtype: what they are held in; None keeps the stored types.
        step: of a training run; the latest by default.
    """
    if not _is_hugging_face(directory):
        config = read_config(directory)
        if checkpoint.is_checkpoint(directory):
            return config, checkpoint.load_params(directory, config, mesh, dtype, step)
        base = checkpoint.read_adapter(directory).base
        if not Path(base).is_dir():
            raise InputError(
                directory, f"its model {base!r} is no directory here", "convert or move that there"
            )
        _, params = load_weights(base, mesh, dtype)
        return config, merged(params, directory, config, step)
    config, tensors = hf.open_model(directory)
    abstract = checkpoint.abstract_params(Qwen2Audio(config), mesh)
    places = jax.tree.map(lambda x: x.sharding, abstract)
    return config, hf.load_params(tensors, config, places, dtype)


def merged(
    params: Params, directory: str | Path, config: ModelConfig, step: int | None = None
) -> Params:
    """Parameters with an adapter's change, where and in the type that they are.

    Args:
        params: given away.
        directory: the adapter's, ours or PEFT's.
        config: of the model.
        step: of the adapter's training run; the latest by default.
    """
    if hf.is_peft(directory):
        adapter = hf.read_peft(directory, config)
    elif checkpoint.is_adapter(directory):
        adapter, card = checkpoint.load_adapter(directory, step)
        if (card.model.audio, card.model.text) != (config.audio, config.text):
            raise InputError(
                directory, f"is for a model of another shape ({card.base})", "load that"
            )
    else:
        raise InputError(
            directory,
            "holds neither adapter.yaml (ours) nor adapter_config.json (PEFT's)",
            "name an adapter's directory",
        )
    places = jax.tree.map(lambda x: x.sharding, params)
    add = jax.jit(
        lambda params, low: merge(params, Adapter(low, adapter.scales)),
        donate_argnums=0,
        out_shardings=places,
    )
    return add(params, adapter.params)
