"""`qa-jax generate`."""

from __future__ import annotations

import argparse

from qa_jax.cli import common
from qa_jax.config import JsonDict
from qa_jax.errors import InputError
from qa_jax.terminal import progress_bar


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("generate", help="answer one prompt with audio, or a manifest's")
    common.add_model(parser)
    parser.add_argument("--audio", action="append", default=[], help="an audio file; repeatable")
    parser.add_argument("--prompt", help="the instruction; without one, it is voice chat")
    parser.add_argument("--system", help="the system message")
    parser.add_argument(
        "--raw", action="store_true", help="no chat template: the base model's raw prompts"
    )
    parser.add_argument(
        "--manifest", help="answer each of its records, whose answers may be absent"
    )
    parser.add_argument("--output", help="JSONL of the manifest's answers, resumable")
    common.add_batch(parser)
    common.add_sampling(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.data.chat import PLACEHOLDER

    if arguments.manifest:
        return _answer_manifest(arguments)
    if arguments.output or arguments.batch_size or arguments.part != common.WHOLE:
        raise InputError("--output, --part, --batch-size", "without --manifest", "name a manifest")
    if not arguments.audio and not arguments.prompt:
        raise InputError("generate", "neither --audio, --prompt nor --manifest", "give one")
    # Audio is read before the model is loaded: a wrong path should not cost a minute.
    clips = [common.load_clip(arguments, path) for path in arguments.audio]
    model = common.load_model(arguments, num_slots=1)
    processor = model.require_processor()
    if arguments.raw:
        text = PLACEHOLDER * len(clips) + (arguments.prompt or "")
        batch = processor(text, clips)
    else:
        parts: list[JsonDict] = [{"type": "audio", "audio": clip} for clip in clips]
        parts += [{"type": "text", "text": arguments.prompt}] if arguments.prompt else []
        system = [{"role": "system", "content": arguments.system}] if arguments.system else []
        batch = processor.apply_chat_template([*system, {"role": "user", "content": parts}])
    for text in model.answer(batch, stream=True, **common.sampling_settings(arguments)):
        print(text, end="", flush=True)
    print()


def _answer_manifest(arguments: argparse.Namespace) -> None:
    from qa_jax.data.questions import read_questions

    if arguments.audio or arguments.prompt or arguments.system:
        raise InputError("--manifest", "given with --audio, --prompt or --system", "give one")
    if not arguments.output:
        raise InputError("--manifest", "given without --output", "name a file for the answers")
    questions = common.part_of(arguments, read_questions(arguments.manifest))
    model = common.load_model(arguments, arguments.batch_size)
    settings = common.sampling_settings(arguments)
    with progress_bar("answering", is_rate=True) as progress:
        summary = model.answer_questions(
            questions, arguments.output, field="prediction", progress=progress, **settings
        )
    common.print_summary(summary, arguments.output)
