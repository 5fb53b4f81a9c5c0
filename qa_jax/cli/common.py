"""Arguments that several subcommands share."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import warnings
from typing import TYPE_CHECKING, Any

from qa_jax.errors import InputError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from jax.sharding import Mesh

    from qa_jax.api import LoadedModel
    from qa_jax.data.questions import Question
    from qa_jax.generate import Summary

    Subparsers = _SubParsersAction[argparse.ArgumentParser]

_SAMPLING = {
    "max_new_tokens": int,
    "min_new_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}
_NEEDS_TEMPERATURE = ("top_k", "top_p", "min_p", "seed")
WHOLE = "1/1"
"""`--part` of a set that is not divided."""


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A recipe, and any setting as --SECTION.NAME VALUE, left over by the parser."""
    parser.add_argument("--config", required=True, help="YAML recipe")
    parser.set_defaults(takes_settings=True)


def add_model(parser: argparse.ArgumentParser) -> None:
    """A checkpoint and how to load it."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="a qa_jax or Hugging Face checkpoint: a directory, or a hub id OWNER/NAME",
    )
    parser.add_argument("--adapter", help="a LoRA adapter to merge in: qa_jax's or PEFT's")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="default: bfloat16 on accelerators, float32 on CPUs",
    )
    parser.add_argument("--weights", choices=("int8",), help="round linear layers to 8 bits")
    parser.add_argument(
        "--mesh",
        help="how devices share the model, such as tensor=4; default: over all accelerators",
    )
    parser.add_argument(
        "--long-audio",
        choices=("error", "truncate", "window"),
        default="error",
        help="clips over 30 s: window splits them where it is quiet; default: error",
    )
    parser.add_argument(
        "--audio-hosts",
        nargs="+",
        default=[],
        metavar="HOST",
        help="hosts that clips may be fetched from, such as *.example.org; default: none",
    )


def load_model(
    arguments: argparse.Namespace, num_slots: int | None = None, capacity: int | None = None
) -> LoadedModel:
    """The model of `add_model`'s arguments; says on stderr how much memory it takes."""
    from convert_weights.hub import resolve_source

    from qa_jax.api import load
    from qa_jax.checkpoint import read_model_config
    from qa_jax.generate import choose_dtypes, default_mesh

    directory = resolve_source(arguments.checkpoint)
    config = read_model_config(directory)
    if arguments.weights:
        config = dataclasses.replace(config, weights=arguments.weights)
    mesh = _parse_mesh(arguments.mesh) if arguments.mesh else default_mesh(config)
    print(f"loading {choose_dtypes(config, arguments.dtype, mesh)}", file=sys.stderr)
    return load(
        directory,
        arguments.dtype,
        mesh,
        long_audio=arguments.long_audio,
        audio_hosts=arguments.audio_hosts,
        adapter=arguments.adapter,
        weights=arguments.weights,
        num_slots=num_slots,
        capacity=capacity,
    )


def _parse_mesh(text: str) -> Mesh:
    from qa_jax.config import MeshConfig
    from qa_jax.parallel import make_mesh

    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in sizes or not re.fullmatch(r"-?\d+", size):
            raise InputError("--mesh", f"{part!r}", "write data=N,fsdp=N,tensor=N or some of them")
        sizes[name] = int(size)
    return make_mesh(MeshConfig(**sizes))


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Generation settings."""
    group = parser.add_argument_group("sampling (default: generation_config.json, else greedy)")
    for name, kind in _SAMPLING.items():
        helps = {"temperature": "0 is greedy", "seed": "default: a new one each time"}
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=helps.get(name))
    parser.add_argument(
        "--sampling-rate", type=int, help="Hz of .npy samples, which contain no rate"
    )


def add_batch(parser: argparse.ArgumentParser) -> None:
    """How a set of questions is divided."""
    parser.add_argument(
        "--batch-size", type=int, help="answers generated together; default: up to 8"
    )
    parser.add_argument(
        "--part",
        default=WHOLE,
        help="I/N: the I-th of N parts, each by a process or host of its own",
    )


def part_of(arguments: argparse.Namespace, questions: list[Question]) -> list[Question]:
    """The questions of this process; those of all parts, in order, are all."""
    found = re.fullmatch(r"(\d+)/(\d+)", arguments.part)
    index, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= index <= count:
        raise InputError("--part", f"{arguments.part!r}", "write I/N, with I from 1 to N")
    size = len(questions)
    return questions[(index - 1) * size // count : index * size // count]


def sampling_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of `add_sampling`'s arguments that were given."""
    given = {name: getattr(arguments, name) for name in _SAMPLING}
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("temperature") == 0:
        for name in _NEEDS_TEMPERATURE:
            if name in given:
                warnings.warn(f"{name} has no effect at temperature 0", stacklevel=2)
    return given


def print_summary(summary: Summary, output: str) -> None:
    """How many rows a file of answers has."""
    print(f"{summary.num_rows} answers in {output}")
    if summary.num_errors:
        print(
            f'{summary.num_errors} of them could not be given: see their "error"', file=sys.stderr
        )


def load_clip(arguments: argparse.Namespace, path: str) -> tuple[Any, int]:
    """An audio file, with its sampling rate after resampling."""
    from qa_jax.config import SAMPLE_RATE
    from qa_jax.data import load_audio

    clip = load_audio(
        path,
        sampling_rate=arguments.sampling_rate,
        long_audio=arguments.long_audio,
        hosts=arguments.audio_hosts,
    )
    return clip, SAMPLE_RATE
