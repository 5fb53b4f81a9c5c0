"""`qa-jax generate`."""

from __future__ import annotations

import argparse
from typing import Any

from qa_jax.cli import common
from qa_jax.errors import InputError


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("generate", help="answer one prompt with audio")
    common.add_model(parser)
    parser.add_argument("--audio", action="append", default=[], help="an audio file; repeatable")
    parser.add_argument("--prompt", help="the instruction; without one, it is voice chat")
    parser.add_argument(
        "--raw", action="store_true", help="no chat template: the base model's raw prompts"
    )
    common.add_sampling(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.data.chat import PLACEHOLDER

    if not arguments.audio and not arguments.prompt:
        raise InputError("generate", "neither --audio nor --prompt", "give at least one")
    # Audio is read before the model is loaded: a wrong path should not cost a minute.
    clips = [common.load_clip(arguments, path) for path in arguments.audio]
    model = common.load_model(arguments)
    processor = model.require_processor()
    if arguments.raw:
        text = PLACEHOLDER * len(clips) + (arguments.prompt or "")
        batch = processor(text, clips)
    else:
        parts: list[dict[str, Any]] = [{"type": "audio", "audio": clip} for clip in clips]
        parts += [{"type": "text", "text": arguments.prompt}] if arguments.prompt else []
        batch = processor.apply_chat_template([{"role": "user", "content": parts}])
    for text in model.answer(batch, stream=True, **common.sampling_settings(arguments)):
        print(text, end="", flush=True)
    print()
