"""`qa-jax chat`."""

from __future__ import annotations

import argparse

from qa_jax.cli import common


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("chat", help="chat with text, and :audio FILE for audio")
    common.add_model(parser)
    parser.add_argument("--system", help="the system message")
    common.add_sampling(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.generate.chat import Chat, chat_loop
    from qa_jax.generate.warm_up import background_warm_up
    from qa_jax.paths import cache_home

    settings = common.sampling_settings(arguments)
    model = common.load_model(arguments, num_slots=1)
    model.require_processor()
    chat = Chat(
        lambda messages: model.chat(messages, stream=True, **settings),
        lambda path: common.load_clip(arguments, path),
        arguments.system,
    )
    with background_warm_up(model.engine):
        chat_loop(chat, cache_home() / "history")
