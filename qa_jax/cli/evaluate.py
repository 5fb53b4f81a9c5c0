"""`qa-jax evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qa_jax.cli import common, score
from qa_jax.errors import InputError
from qa_jax.terminal import progress_bar


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="answer and score a benchmark or a manifest, or score a manifest's preference pairs",
    )
    common.add_model(parser)
    parser.add_argument("manifest", nargs="?", help="records to answer; or give --benchmark")
    group = parser.add_argument_group("benchmark")
    group.add_argument("--benchmark", metavar="NAME", help="a recipe's name, or a .yaml file")
    group.add_argument("--data", help='the directory of its data, or "hub"')
    group.add_argument("--subset", action="append", default=[], help="one of its subsets; repeat")
    group.add_argument(
        "--style", choices=("base", "instruct"), help="without or with a chat template"
    )
    group.add_argument("--table", help="the data's file with the questions, if it is another")
    group.add_argument("--limit", type=int, help="the first items of each subset")
    group.add_argument("--window-seconds", type=float, default=30.0, help="of --long-audio window")
    parser.add_argument(
        "--output", help="the answers, resumable; MANIFEST or BENCHMARK.predictions.jsonl"
    )
    parser.add_argument("--max-new-tokens", type=int)
    common.add_batch(parser)
    score.add_metrics(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.data.manifest import contains_pairs

    if bool(arguments.manifest) == bool(arguments.benchmark):
        raise InputError("evaluate", "neither or both of MANIFEST and --benchmark", "give one")
    output = _output(arguments)
    if arguments.manifest and contains_pairs(arguments.manifest):
        return _evaluate_pairs(arguments, output)
    _evaluate_answers(arguments, output)


def _evaluate_answers(arguments: argparse.Namespace, output: str) -> None:
    from qa_jax.evaluate import answer, load_benchmark, read_benchmark, read_labelled

    settings = {}
    if arguments.benchmark:
        if not arguments.data:
            raise InputError("--benchmark", "given without --data", 'name a directory, or "hub"')
        benchmark = load_benchmark(arguments.benchmark)
        questions = read_benchmark(
            arguments.benchmark,
            arguments.data,
            subsets=arguments.subset,
            style=arguments.style,
            table=arguments.table,
            limit=arguments.limit,
        )
        settings = {"min_new_tokens": benchmark.min_new_tokens}
        max_new_tokens = arguments.max_new_tokens or benchmark.max_new_tokens
    else:
        questions = read_labelled(arguments.manifest)
        max_new_tokens = arguments.max_new_tokens or 256
    questions = common.part_of(arguments, questions)
    window_seconds = arguments.window_seconds if arguments.long_audio == "window" else None
    model = common.load_model(arguments, arguments.batch_size)
    with progress_bar("answering", is_rate=True) as progress:
        summary = answer(
            model,
            questions,
            output,
            window_seconds=window_seconds,
            progress=progress,
            max_new_tokens=max_new_tokens,
            **settings,
        )
    common.print_summary(summary, output)
    if arguments.part == "1/1":
        score.print_scores(arguments, [output])
    else:
        print("score all parts together: qa-jax score PART.jsonl PART.jsonl ...")


def _output(arguments: argparse.Namespace) -> str:
    if arguments.output:
        return str(arguments.output)
    if arguments.benchmark:
        return f"{Path(arguments.benchmark).stem}.predictions.jsonl"
    if "://" in arguments.manifest:
        raise InputError("--output", f"is needed for {arguments.manifest}", "name a local file")
    return str(Path(arguments.manifest).with_suffix(".predictions.jsonl"))


def _evaluate_pairs(arguments: argparse.Namespace, output: str) -> None:
    from qa_jax.evaluate import evaluate_pairs

    batch_size = arguments.batch_size or 8
    model = common.load_model(arguments, batch_size)
    with progress_bar("scoring", is_rate=True) as progress:
        pairs = evaluate_pairs(
            model, arguments.manifest, batch_size=batch_size, output=output, progress=progress
        )
    print(
        f"{pairs.num_records} pairs  logp accuracy {pairs.logp_accuracy:.2%}  mean logp accuracy "
        f"{pairs.mean_logp_accuracy:.2%}  log-probabilities in {output}"
    )
