"""`qa-jax train`."""

from __future__ import annotations

import argparse

from qa_jax.cli import common


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model",
        description="Trains, or resumes training from the output directory. Any setting is given "
        "as --SECTION.NAME VALUE, for example --train.steps 100; see qa_jax/config/.",
        allow_abbrev=False,
    )
    common.add_settings(parser)
    parser.add_argument(
        "--show-sharding", action="store_true", help="print each parameter's sharding and exit"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from qa_jax.config import load_run_config
    from qa_jax.parallel import initialize_distributed
    from qa_jax.train import Preempted, train
    from qa_jax.train.run import prepare
    from qa_jax.train.sharding import sharding_report

    initialize_distributed()
    config = load_run_config(arguments.config, arguments.overrides)
    if arguments.show_sharding:
        prepared = prepare(config)
        print("\n".join(sharding_report(prepared.models.policy, prepared.mesh)))
        return
    try:
        metrics = train(config)
    except Preempted as preempted:
        print(preempted)
        return
    print(f"step {config.train.steps}: loss {metrics['loss']:.4f}, in {config.train.output_dir}")
