"""`qa-jax score`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from qa_jax.cli import common
from qa_jax.errors import InputError


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "score", help="score files of answers, compare two, and write reports of them"
    )
    parser.add_argument("answers", nargs="+", help="files of qa-jax evaluate, all parts of a run")
    parser.add_argument("--benchmark", metavar="NAME", help="default: the one in the answers")
    add_metrics(parser)
    parser.add_argument(
        "--compare", nargs="+", metavar="ANSWERS", help="another model's, on the same items"
    )
    parser.add_argument("--export", metavar="FILE", help="write what the benchmark's script reads")
    parser.add_argument("--data", help="the benchmark's data, for --export and sounds of the hub")
    parser.set_defaults(run=run)


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """How answers are scored, and what is written of it."""
    group = parser.add_argument_group("scores")
    group.add_argument("--metric", action="append", default=[], help="instead of the recipe's")
    group.add_argument("--normalizer", help="instead of the recipe's")
    group.add_argument("--language", help="of a manifest's answers: en, zh, yue, ...")
    group.add_argument("--json", metavar="FILE", help="write the scores")
    group.add_argument("--html", metavar="FILE", help="write a page with every answer and its clip")
    group.add_argument(
        "--clips", type=int, default=200, help="clips in that page, of the worst answers first"
    )


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.evaluate.export import export
    from qa_jax.evaluate.score import answer_files

    if arguments.compare and arguments.metric:
        raise InputError("--compare", "given with --metric", "it compares the recipe's metrics")
    print_scores(arguments, arguments.answers)
    if arguments.compare:
        _print_comparison(arguments)
    if arguments.export:
        count = export(
            answer_files(arguments.answers),
            arguments.export,
            name=arguments.benchmark,
            data=arguments.data,
        )
        print(f"{count} rows in {arguments.export}")


def print_scores(arguments: argparse.Namespace, outputs: Sequence[str]) -> None:
    """Scores files of answers as the arguments say, and writes the reports that they ask for."""
    from qa_jax.evaluate import read_answers, read_run, score
    from qa_jax.evaluate.report import print_table, write_html, write_json
    from qa_jax.evaluate.score import answer_files

    rows = read_answers(outputs)
    scored = score(
        rows,
        benchmark=arguments.benchmark,
        metrics=tuple(arguments.metric),
        normalizer=arguments.normalizer,
        language=arguments.language,
    )
    run_record = read_run(answer_files(outputs), rows)
    print_table(scored, run_record)
    if arguments.json:
        write_json(arguments.json, scored, run_record)
    if arguments.html:
        write_html(arguments.html, scored, run_record, arguments.clips, arguments.data)
        print(f"report in {arguments.html}")


def _print_comparison(arguments: argparse.Namespace) -> None:
    from qa_jax.evaluate import compare_answers, read_answers
    from qa_jax.evaluate.report import print_differences

    differences = compare_answers(
        read_answers(arguments.answers),
        read_answers(arguments.compare),
        benchmark=arguments.benchmark,
        normalizer=arguments.normalizer,
        language=arguments.language,
    )
    print_differences(differences)
