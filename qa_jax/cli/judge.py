"""`qa-jax judge`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qa_jax.cli import common
from qa_jax.errors import InputError
from qa_jax.terminal import progress_bar


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "judge", help="let another model score answers, through any API of OpenAI's form"
    )
    parser.add_argument("answers", nargs="+", help="files of qa-jax evaluate")
    parser.add_argument("--output", required=True, help="the answers with judgements, resumable")
    parser.add_argument("--benchmark", metavar="NAME", help="default: the one in the answers")
    parser.add_argument("--url", help="of the API, up to /v1; default: OpenAI's")
    parser.add_argument("--model", help="the judge; default: that of the benchmark's authors")
    parser.add_argument("--prompt", help="a text file: the judge's prompt, if the recipe has none")
    parser.add_argument("--threads", type=int, default=8, help="requests at a time")
    parser.add_argument(
        "--price", type=float, nargs=2, metavar=("INPUT", "OUTPUT"), help="of a million tokens"
    )
    parser.add_argument("--yes", action="store_true", help="ask; without, the cost is told alone")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.evaluate import load_benchmark, read_answers
    from qa_jax.evaluate.judge import judge, openai_judge, plan_judging

    rows = read_answers(arguments.answers)
    benchmark = load_benchmark(arguments.benchmark or str(rows[0].get("benchmark", "")))
    model = arguments.model or benchmark.judge.model
    prompt = None
    if arguments.prompt:
        try:
            prompt = Path(arguments.prompt).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(arguments.prompt, f"not readable ({error})", "check it") from None
    plan = plan_judging(rows, benchmark, arguments.output, model=model, prompt=prompt)
    cost = ""
    if arguments.price:
        dollars = plan.input_tokens * arguments.price[0] + plan.output_tokens * arguments.price[1]
        cost = f": at most {dollars / 1e6:.2f}"
    print(
        f"{plan.num_requests} requests to {model}, about {plan.input_tokens} tokens in and at most "
        f"{plan.output_tokens} out{cost}; {plan.num_asked} of {len(rows)} rows are judged already"
    )
    if not arguments.yes:
        print("nothing was asked; --yes asks")
        return
    ask = openai_judge(benchmark, model, arguments.url, None)
    with progress_bar("judging", is_rate=True) as progress:
        judge(rows, plan, ask, arguments.output, num_threads=arguments.threads, progress=progress)
    print(f"score them: qa-jax score {arguments.output}")
