"""Checkpoint directories: the step manager, the array store, adapters, loading of any format."""

from qa_jax.checkpoint.adapters import (
    AdapterConfig,
    create_adapter,
    is_adapter,
    load_adapter,
    read_adapter_config,
    save_adapter,
)
from qa_jax.checkpoint.directory import (
    CONFIG_FILE,
    TOKENIZER_FILES,
    copy_tokenizer_files,
    create,
    is_checkpoint,
    read_config,
    split_step,
)
from qa_jax.checkpoint.load import load_weights, merge_adapter, read_model_config
from qa_jax.checkpoint.manager import CheckpointManager, save_params
from qa_jax.checkpoint.reader import abstract_params, all_steps, find_step, load_params

__all__ = [
    "CONFIG_FILE",
    "TOKENIZER_FILES",
    "AdapterConfig",
    "CheckpointManager",
    "abstract_params",
    "all_steps",
    "copy_tokenizer_files",
    "create",
    "create_adapter",
    "find_step",
    "is_adapter",
    "is_checkpoint",
    "load_adapter",
    "load_params",
    "load_weights",
    "merge_adapter",
    "read_adapter_config",
    "read_config",
    "read_model_config",
    "save_adapter",
    "save_params",
    "split_step",
]
