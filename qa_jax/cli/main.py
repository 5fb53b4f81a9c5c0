"""`qa-jax`: one command with subcommands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from qa_jax.cli import (
    chat,
    convert,
    data,
    demo,
    evaluate,
    generate,
    inspect,
    judge,
    plan,
    score,
    selftest,
    serve,
    tokenizer,
    train,
    transcribe,
)
from qa_jax.terminal import exit_code

_COMMANDS = (
    train,
    plan,
    generate,
    chat,
    transcribe,
    evaluate,
    judge,
    score,
    serve,
    tokenizer,
    convert,
    data,
    inspect,
    selftest,
    demo,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        "qa-jax",
        description="Qwen2-Audio in JAX: training, generation, conversion.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qa_jax {version('qa_jax')}")
    parser.set_defaults(takes_settings=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    arguments, overrides = parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))
    if overrides and not arguments.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    arguments.overrides = overrides
    return exit_code(lambda: arguments.run(arguments))
