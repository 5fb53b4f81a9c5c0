"""Directories of LoRA adapters alone, without the base model."""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from qa_jax.checkpoint.directory import write_config
from qa_jax.checkpoint.manager import save_params
from qa_jax.checkpoint.reader import find_step, restore, step_metadata
from qa_jax.config import ModelConfig, parse, read_yaml, to_dict
from qa_jax.lora import LoraWeights
from qa_jax.paths import PathLike, as_path
from qa_jax.typing import ParamPath

ADAPTER_FILE = "adapter.yaml"


class AdapterConfig(NamedTuple):
    """The contents of adapter.yaml.

    Attributes:
        base: the base model: a directory or a hub id.
        scales: see `LoraWeights`.
        model: the base model's configuration.
    """

    base: str
    scales: dict[ParamPath, float]
    model: ModelConfig


def is_adapter(directory: PathLike) -> bool:
    """Whether this is a qa_jax adapter."""
    return (as_path(directory) / ADAPTER_FILE).exists()


def create_adapter(
    directory: PathLike, config: AdapterConfig, tokenizer_dir: PathLike | None
) -> None:
    """Creates an adapter's directory, as `create` does for a model."""
    raw = {
        "base": config.base,
        "scales": {"/".join(path): scale for path, scale in config.scales.items()},
        "model": to_dict(config.model),
    }
    write_config(directory, ADAPTER_FILE, raw, tokenizer_dir)


def read_adapter_config(directory: PathLike) -> AdapterConfig:
    """Reads adapter.yaml."""
    path = as_path(directory) / ADAPTER_FILE
    raw = read_yaml(path)
    scales = {tuple(name.split("/")): float(x) for name, x in raw.get("scales", {}).items()}
    model = parse(ModelConfig, raw.get("model", {}), path)
    return AdapterConfig(raw.get("base", ""), scales, model)


def save_adapter(directory: PathLike, adapter: LoraWeights, config: ModelConfig, base: str) -> None:
    """Saves an adapter alone: `adapter.yaml`, and its matrices as the parameters of step 0.

    Args:
        directory: the new directory.
        adapter: the adapter.
        config: configuration of the base model.
        base: the base model, for people and for PEFT.
    """
    save_params(directory, adapter.params)
    create_adapter(directory, AdapterConfig(base, adapter.scales, config), None)


def load_adapter(directory: PathLike, step: int | None = None) -> tuple[LoraWeights, AdapterConfig]:
    """An adapter's latest step (or `step`) and its adapter.yaml."""
    config = read_adapter_config(directory)
    found = find_step(directory, step)
    device = SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        step_metadata(directory, found)["params"],
    )
    params = restore(directory, found, params=abstract)["params"]
    return LoraWeights(params, config.scales), config
