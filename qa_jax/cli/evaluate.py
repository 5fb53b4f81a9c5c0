"""`qa-jax evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qa_jax.cli import common
from qa_jax.errors import InputError
from qa_jax.terminal import progress_bar


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="generate and score the answers of a manifest, or score its preference pairs",
    )
    common.add_model(parser)
    parser.add_argument("manifest")
    parser.add_argument("--output", help="predictions; MANIFEST.predictions.jsonl by default")
    parser.add_argument("--batch-size", type=int, default=8, help="records at a time")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.data.manifest import contains_pairs
    from qa_jax.evaluate import evaluate, evaluate_pairs

    manifest, batch_size = arguments.manifest, arguments.batch_size
    if not arguments.output and "://" in manifest:
        raise InputError("--output", f"is needed for {manifest}", "name a local file")
    output = arguments.output or str(Path(manifest).with_suffix(".predictions.jsonl"))
    has_pairs = contains_pairs(manifest)
    model = common.load_model(arguments, batch_size)
    with progress_bar("scoring" if has_pairs else "answering", is_rate=True) as progress:
        if has_pairs:
            pairs = evaluate_pairs(
                model, manifest, batch_size=batch_size, output=output, progress=progress
            )
            result = (
                f"{pairs.num_records} pairs  logp accuracy {pairs.logp_accuracy:.2%}  mean logp "
                f"accuracy {pairs.mean_logp_accuracy:.2%}  log-probabilities in {output}"
            )
        else:
            scores = evaluate(
                model,
                manifest,
                output=output,
                progress=progress,
                max_new_tokens=arguments.max_new_tokens,
            )
            result = (
                f"{scores.num_records} records  word error rate {scores.word_error_rate:.2%}  "
                f"exact match {scores.exact_match:.2%}  predictions in {output}"
                + (f"  {scores.num_errors} without an answer" if scores.num_errors else "")
            )
    print(result)
