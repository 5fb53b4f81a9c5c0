"""The layout of a checkpoint directory, and its files other than arrays.

    DIR/config.yaml             the model's configuration; of an adapter alone, adapter.yaml
    DIR/tokenizer.json, ...     the tokenizer's files, if there is a tokenizer
    DIR/generation_config.json  default generation settings, if there are any
    DIR/checksums/STEP.json     sizes and checksums of a training step's files
    DIR/checkpoints/STEP/       parameters and, for a training run, the optimizer's state

A training run's output and a converted model are both such a directory.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml

from qa_jax.config import JsonDict, ModelConfig, parse, read_yaml, to_dict

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


def is_checkpoint(directory: str | Path) -> bool:
    """Whether this is a qa_jax checkpoint (rather than, for example, Hugging Face's)."""
    return (Path(directory) / CONFIG_FILE).is_file()


def create(directory: str | Path, config: ModelConfig, tokenizer_dir: str | Path | None) -> None:
    """Creates a checkpoint directory with its configuration and the tokenizer's files."""
    write_config(Path(directory), CONFIG_FILE, to_dict(config), tokenizer_dir)


def write_config(
    directory: Path, name: str, raw: JsonDict, tokenizer_dir: str | Path | None
) -> None:
    """Creates a directory with the tokenizer's files and, written atomically, a YAML file."""
    directory.mkdir(parents=True, exist_ok=True)
    copy_tokenizer_files(tokenizer_dir, directory)
    partial = directory / f".{name}.partial"
    partial.write_text(yaml.safe_dump(raw, sort_keys=False))
    os.replace(partial, directory / name)


def copy_tokenizer_files(source: str | Path | None, directory: Path) -> None:
    """Copies those of `TOKENIZER_FILES` that the source directory has."""
    if source is None or Path(source).resolve() == directory.resolve():
        return
    for name in TOKENIZER_FILES:
        if (Path(source) / name).is_file():
            shutil.copyfile(Path(source) / name, directory / name)


def read_config(directory: str | Path) -> ModelConfig:
    """The model configuration of a checkpoint directory."""
    path = Path(directory) / CONFIG_FILE
    return parse(ModelConfig, read_yaml(path), path)
