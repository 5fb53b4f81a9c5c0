"""`qa-jax chat`."""

from __future__ import annotations

import argparse

from qa_jax.cli import common


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("chat", help="chat with text, and :audio FILE for audio")
    common.add_model(parser)
    common.add_sampling(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.generate.chat import chat_loop

    model, settings = common.load_model(arguments), common.sampling_settings(arguments)
    chat_loop(
        lambda messages: model.chat(messages, stream=True, **settings),
        lambda path: common.load_clip(arguments, path),
    )
