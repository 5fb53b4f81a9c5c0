"""`qa-jax train`."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from typing import NoReturn

from qa_jax.cli import common
from qa_jax.errors import InputError
from qa_jax.terminal import RESTART


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model",
        description="Trains, or resumes training from the output directory. Any setting is given "
        "as --SECTION.NAME VALUE, for example --train.steps 100; see qa_jax/config/. Exit codes: 0 "
        f"done; 2 an input cannot be used; {RESTART} stopped by a signal or a lost process: the "
        "same command resumes.",
        allow_abbrev=False,
    )
    common.add_settings(parser)
    parser.add_argument(
        "--show-sharding", action="store_true", help="print each parameter's sharding and exit"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import jax

    from qa_jax.config import load_run_config
    from qa_jax.evaluate import answer_scorer
    from qa_jax.parallel import initialize_distributed
    from qa_jax.train import Preempted, train
    from qa_jax.train.best import BestStep
    from qa_jax.train.run import prepare
    from qa_jax.train.sharding import sharding_report

    print(initialize_distributed(), flush=True)
    config = load_run_config(arguments.config, arguments.overrides)
    if arguments.show_sharding:
        prepared = prepare(config)
        print("\n".join(sharding_report(prepared.models.policy, prepared.mesh)))
        return 0
    try:
        metrics = train(config, score=answer_scorer(config))
    except Preempted as preempted:
        print(preempted)
        return RESTART
    except InputError as error:
        if jax.process_count() > 1:
            leave(f"error: {error}", 2)
        raise
    except Exception as error:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        text = f"{' '.join(str(error).split())[:300]}; the same command resumes from the last save"
        if isinstance(error, jax.errors.JaxRuntimeError):
            leave(f"error: lost another process, or the devices ({text})", RESTART)
        leave(f"error: process {jax.process_index()} failed ({text})", 1)
    output = config.train.output_dir
    print(f"step {metrics['step']:.0f}: loss {metrics['loss']:.4f}, in {output}")
    if config.train.best_metric:
        best = BestStep.so_far(config.train, int(metrics["step"]))
        print(f"{best}: {output}/checkpoints/{best.step}")
    return 0


def leave(message: str, code: int) -> NoReturn:
    """Ends this process of several at once: a usual exit waits minutes for the other processes,
    which may be gone, or wait for this one."""
    from qa_jax.parallel import is_main_process

    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if is_main_process():
        time.sleep(2)  # the others would be aborted, for their coordinator is in this process
    os._exit(code)
