"""Loading weights from any supported format: qa_jax checkpoints and adapters, Hugging Face's
directories, PEFT's adapters."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
from jax.sharding import Mesh

from qa_jax import hf
from qa_jax.checkpoint.adapters import is_adapter, load_adapter, read_adapter_config
from qa_jax.checkpoint.directory import is_checkpoint, read_config, split_step
from qa_jax.checkpoint.reader import abstract_params, load_params
from qa_jax.config import ModelConfig
from qa_jax.errors import InputError
from qa_jax.lora import merge_lora
from qa_jax.model import Qwen2Audio, cast_to_param_dtypes
from qa_jax.paths import PathLike, as_path
from qa_jax.typing import DType, Params


def read_model_config(directory: PathLike) -> ModelConfig:
    """The model configuration of a qa_jax checkpoint or adapter, or of a Hugging Face directory.

    Raises InputError for any other directory.
    """
    directory, _ = split_step(directory)
    if is_checkpoint(directory):
        return read_config(directory)
    if is_adapter(directory):
        return read_adapter_config(directory).model
    if _is_hugging_face(directory):
        return hf.open_model(directory)[0]
    raise InputError(
        directory,
        "contains neither config.yaml (a qa_jax checkpoint), adapter.yaml (a qa_jax adapter) nor "
        "config.json (Hugging Face)",
        "name a checkpoint's directory",
    )


def _is_hugging_face(directory: PathLike) -> bool:
    is_qa_jax = is_checkpoint(directory) or is_adapter(directory)
    return not is_qa_jax and (as_path(directory) / "config.json").exists()


def load_weights(
    directory: PathLike,
    mesh: Mesh | None = None,
    dtype: DType = None,
    step: int | None = None,
    *,
    adapter: PathLike | None = None,
    weights: Literal["float", "int8"] | None = None,
) -> tuple[ModelConfig, Params]:
    """A model's configuration and parameters, each device reading its own shards.

    Args:
        directory: see `read_model_config`. An adapter is merged into its base model.
            DIR/checkpoints/STEP is a step of a training run.
        mesh: the parameters' mesh; one device without.
        dtype: the parameters' dtype; None keeps the stored dtypes.
        step: of a training run; the latest by default.
        adapter: to merge in.
        weights: "int8" to round the linear layers, after merging; as stored by default.
    """
    directory, named_step = split_step(directory)
    step = named_step if step is None else step
    config = read_model_config(directory)
    final = config if weights is None else dataclasses.replace(config, weights=weights)
    stored = config
    if is_adapter(directory):
        base = read_adapter_config(directory).base
        if not as_path(base).is_dir():
            raise InputError(
                directory, f"its base model {base!r} is not a directory", "convert or move it there"
            )
        stored, params = load_weights(base, mesh, dtype)
        _check_float(base, stored)
        params = merge_adapter(params, directory, config, step)
    elif _is_hugging_face(directory):
        tensors = hf.open_model(directory)[1]
        shardings = jax.tree.map(lambda x: x.sharding, abstract_params(Qwen2Audio(config), mesh))
        if adapter is None:  # rounded while they are read
            stored = final
        params = hf.load_params(tensors, stored, shardings, dtype)
    else:
        params = load_params(directory, config, mesh, dtype, step)
    if adapter is not None:
        _check_float(directory, stored)
        params = merge_adapter(params, adapter, config)
    if final.weights != stored.weights:
        _check_float(directory, stored)
        params = cast_to_param_dtypes(Qwen2Audio(final), params)
    return final, params


def _check_float(directory: PathLike, config: ModelConfig) -> None:
    if config.weights != "float":
        raise InputError(
            directory, "its weights are int8, for inference alone", "use the original checkpoint"
        )


def merge_adapter(
    params: Params,
    directory: PathLike,
    config: ModelConfig,
    step: int | None = None,
    donate: bool = True,
) -> Params:
    """Parameters with an adapter merged in, with the same shardings and dtypes.

    Args:
        params: donated by default.
        directory: the adapter's, of qa_jax or PEFT.
        config: of the model.
        step: of the adapter's training run; the latest by default.
        donate: see `merge_lora`.
    """
    if hf.is_peft(directory):
        adapter = hf.read_peft(directory, config)
    elif is_adapter(directory):
        adapter, adapter_config = load_adapter(directory, step)
        base = adapter_config.model
        if (base.audio, base.text) != (config.audio, config.text):
            raise InputError(
                directory,
                f"is for a model of another shape ({adapter_config.base})",
                "load that model",
            )
    else:
        raise InputError(
            directory,
            "contains neither adapter.yaml (qa_jax) nor adapter_config.json (PEFT)",
            "name an adapter's directory",
        )
    return merge_lora(params, adapter, donate=donate)
