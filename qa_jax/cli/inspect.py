"""`qa-jax inspect`."""

from __future__ import annotations

import argparse

from qa_jax.cli import common


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("inspect", help="describe a checkpoint")
    parser.add_argument("directory", help="a qa_jax or Hugging Face directory, or a hub id")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from convert_weights.description import describe

    print(describe(arguments.directory))
