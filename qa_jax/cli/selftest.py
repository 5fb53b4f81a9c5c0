"""`qa-jax selftest`."""

from __future__ import annotations

import argparse

from qa_jax.cli import common


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "selftest", help="run numerical self-checks on this hardware (a few minutes)"
    )
    parser.add_argument(
        "--directory",
        default="",
        help="a directory that all hosts share, to check checkpoints of several processes",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import jax

    from qa_jax.parallel import initialize_distributed, is_main_process
    from qa_jax.selftest import selftest

    print(f"{initialize_distributed()}, jax {jax.__version__}", flush=True)
    num_failed = 0
    for result in selftest(arguments.directory):
        num_failed += not result.passed
        if is_main_process():
            print(
                f"{'pass' if result.passed else 'FAIL'}  {result.name:62} {result.error:.1e} "
                f"(limit {result.limit:.0e})  {result.seconds:.1f} s"
                + ("" if result.passed else f"  largest: {result.where}"),
                flush=True,
            )
    if is_main_process():
        if jax.process_count() > 1 and not arguments.directory:
            print("skip  a checkpoint restored on other meshes: pass --directory SHARED")
        print(
            f"{num_failed} checks FAILED: results on this hardware are unreliable"
            if num_failed
            else "all checks passed"
        )
    return 1 if num_failed else 0
