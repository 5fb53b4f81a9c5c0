"""`qa-jax selftest`."""

from __future__ import annotations

import argparse

from qa_jax.cli import common


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "selftest", help="run numerical self-checks on this hardware (a few minutes)"
    )
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    import jax

    from qa_jax.selftest import selftest

    device = jax.devices()[0]
    print(f"{jax.device_count()} x {device.device_kind} ({device.platform}), jax {jax.__version__}")
    num_failed = 0
    for result in selftest():
        num_failed += not result.passed
        print(
            f"{'pass' if result.passed else 'FAIL'}  {result.name:62} {result.error:.1e} "
            f"(limit {result.limit:.0e})  {result.seconds:.1f} s",
            flush=True,
        )
    print(
        f"{num_failed} checks FAILED: results on this hardware are unreliable"
        if num_failed
        else "all checks passed"
    )
    return 1 if num_failed else 0
