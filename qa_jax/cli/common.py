"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from qa_jax.api import LoadedModel

    Subparsers = _SubParsersAction[argparse.ArgumentParser]

_SAMPLING = (
    "max_new_tokens",
    "min_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "seed",
)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A recipe, and any setting as --SECTION.NAME VALUE, left over by the parser."""
    parser.add_argument("--config", required=True, help="YAML recipe")
    parser.set_defaults(takes_settings=True)


def add_model(parser: argparse.ArgumentParser) -> None:
    """A checkpoint and how to load it."""
    parser.add_argument(
        "--checkpoint", required=True, help="a qa_jax or Hugging Face checkpoint directory"
    )
    parser.add_argument("--adapter", help="a LoRA adapter to merge in: qa_jax's or PEFT's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as stored")
    parser.add_argument("--long-audio", choices=("error", "truncate"), default="error")


def load_model(arguments: argparse.Namespace) -> LoadedModel:
    """The model of `add_model`'s arguments."""
    from qa_jax.api import load

    return load(
        arguments.checkpoint,
        arguments.dtype,
        long_audio=arguments.long_audio,
        adapter=arguments.adapter,
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Generation settings."""
    group = parser.add_argument_group("sampling (default: generation_config.json, else greedy)")
    group.add_argument("--max-new-tokens", type=int)
    group.add_argument("--min-new-tokens", type=int)
    group.add_argument("--temperature", type=float, help="0 is greedy")
    group.add_argument("--top-k", type=int)
    group.add_argument("--top-p", type=float)
    group.add_argument("--repetition-penalty", type=float)
    group.add_argument("--seed", type=int)
    parser.add_argument(
        "--sampling-rate", type=int, help="Hz of .npy samples, which contain no rate"
    )


def sampling_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of `add_sampling`'s arguments that were given."""
    given = {name: getattr(arguments, name) for name in _SAMPLING}
    return {name: value for name, value in given.items() if value is not None}


def load_clip(arguments: argparse.Namespace, path: str) -> tuple[Any, int]:
    """An audio file, with its sampling rate after resampling."""
    from qa_jax.config import SAMPLE_RATE
    from qa_jax.data import load_audio

    rate, long_audio = arguments.sampling_rate, arguments.long_audio
    return load_audio(path, sampling_rate=rate, long_audio=long_audio), SAMPLE_RATE
