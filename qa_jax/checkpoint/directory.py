"""The layout of a checkpoint directory, and its files other than arrays.

    DIR/config.yaml             the model's configuration; of an adapter alone, adapter.yaml
    DIR/tokenizer.json, ...     the tokenizer's files, if there is a tokenizer
    DIR/generation_config.json  default generation settings, if there are any
    DIR/run.yaml                a training run's settings
    DIR/checksums/STEP.json     sizes and checksums of a training step's files
    DIR/checkpoints/STEP/       parameters and, for a training run, the optimizer's state

A training run's output and a converted model are both such a directory.
"""

from __future__ import annotations

import os

import yaml

from qa_jax.config import JsonDict, ModelConfig, parse, read_yaml, to_dict
from qa_jax.paths import AnyPath, PathLike, as_path, write_whole

CONFIG_FILE = "config.yaml"
STEPS = "checkpoints"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "sentencepiece.model",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
"""Tokenizer and generation files copied with a checkpoint."""


def is_checkpoint(directory: PathLike) -> bool:
    """Whether this is a qa_jax checkpoint (rather than, for example, Hugging Face's)."""
    return (as_path(directory) / CONFIG_FILE).exists()


def split_step(path: PathLike) -> tuple[str, int | None]:
    """DIR/checkpoints/STEP as (DIR, STEP); any other path as (path, None)."""
    text = os.fspath(path).rstrip("/")
    directory, slash, step = text.rpartition(f"/{STEPS}/")
    if slash and step.isdigit():
        return directory, int(step)
    return os.fspath(path), None


def create(directory: PathLike, config: ModelConfig, tokenizer_dir: PathLike | None) -> None:
    """Creates a checkpoint directory with its configuration and the tokenizer's files."""
    write_config(directory, CONFIG_FILE, to_dict(config), tokenizer_dir)


def write_config(
    directory: PathLike, name: str, raw: JsonDict, tokenizer_dir: PathLike | None
) -> None:
    """Creates a directory with the tokenizer's files and, written atomically, a YAML file."""
    root = as_path(directory)
    root.mkdir(parents=True, exist_ok=True)
    copy_tokenizer_files(tokenizer_dir, root)
    write_whole(root / name, yaml.safe_dump(raw, sort_keys=False))


def copy_tokenizer_files(source: PathLike | None, directory: AnyPath) -> None:
    """Copies those of `TOKENIZER_FILES` that the source directory has."""
    if source is None or os.path.realpath(source) == os.path.realpath(directory):
        return
    root = as_path(source)
    for name in TOKENIZER_FILES:
        if (root / name).exists():
            (directory / name).write_bytes((root / name).read_bytes())


def read_config(directory: PathLike) -> ModelConfig:
    """The model configuration of a checkpoint directory."""
    path = as_path(directory) / CONFIG_FILE
    return parse(ModelConfig, read_yaml(path), path)
