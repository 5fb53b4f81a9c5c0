"""`qa-jax convert`."""

from __future__ import annotations

from convert_weights import command

from qa_jax.cli import common


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("convert", help="convert between Hugging Face and qa_jax")
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)
