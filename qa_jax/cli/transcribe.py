"""`qa-jax transcribe`."""

from __future__ import annotations

import argparse

from qa_jax.cli import common
from qa_jax.terminal import progress_bar


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "transcribe", help="transcribe many audio files into a JSONL file, resumable"
    )
    common.add_model(parser)
    parser.add_argument(
        "inputs", nargs="+", help="audio files, directories, patterns, or .jsonl manifests"
    )
    parser.add_argument("--output", required=True, help="a row for each file: audio, text or error")
    parser.add_argument("--prompt", default="Transcribe.", help="the instruction")
    parser.add_argument("--raw", action="store_true", help="no chat template: for the base model")
    parser.add_argument(
        "--window-seconds",
        type=float,
        default=30.0,
        help="the longest window of --long-audio window, whose rows have segments with times",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256)
    common.add_batch(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.data.questions import audio_questions

    questions = common.part_of(
        arguments, audio_questions(arguments.inputs, arguments.prompt, arguments.raw)
    )
    window_seconds = arguments.window_seconds if arguments.long_audio == "window" else None
    model = common.load_model(arguments, arguments.batch_size)
    with progress_bar("transcribing", is_rate=True) as progress:
        summary = model.answer_questions(
            questions,
            arguments.output,
            window_seconds=window_seconds,
            progress=progress,
            max_new_tokens=arguments.max_new_tokens,
            temperature=0.0,  # as the authors evaluate
            repetition_penalty=1.0,
        )
    common.print_summary(summary, arguments.output)
