"""`qa-jax tokenizer`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qa_jax.cli import common
from qa_jax.errors import InputError


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("tokenizer", help="train a SentencePiece model on a text file")
    parser.add_argument("text")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--output", required=True, help="directory of the new tokenizer")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.data import SentencePiece

    try:
        lines = Path(arguments.text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(arguments.text, f"not readable ({error})", "give a text file") from None
    trained = SentencePiece.train(lines, arguments.output, arguments.vocab_size)
    print(f"{trained.vocab_size} pieces in {arguments.output}")
