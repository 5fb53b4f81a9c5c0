"""`qa-jax demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qa_jax.cli import common


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "demo", help="train a small model on synthetic audio and show its answers"
    )
    parser.add_argument("--output", default="runs/demo")
    parser.add_argument(
        "--configs", default="configs", help="directory of demo_pretrain.yaml, demo.yaml"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", action="store_true", help="add DPO: all three stages")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    output, configs = Path(arguments.output), Path(arguments.configs)
    if arguments.stages:
        from qa_jax.demo.stages import run_stages

        run_stages(output, configs, arguments.seed)
        return
    from qa_jax.demo.run import run as run_demo

    run_demo(output, configs, arguments.seed)
