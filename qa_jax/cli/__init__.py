"""The command line: `qa-jax`, with a module for each subcommand."""

from qa_jax.cli.main import main

__all__ = ["main"]
