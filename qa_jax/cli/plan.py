"""`qa-jax plan`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from qa_jax.cli import common
from qa_jax.errors import InputError


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser(
        "plan",
        help="estimate memory and step time on a TPU topology or on GPUs",
        description="Compiles the training step for a TPU topology and reports its memory, "
        "network, time and MFU; for GPUs these are analytic. Settings are given as for train.",
        allow_abbrev=False,
    )
    common.add_settings(parser)
    parser.add_argument(
        "--topology", required=True, help="v5e:4x4, v5p:2x2x1, v6e:2x4, h200:1, ..."
    )
    parser.add_argument(
        "--job", choices=("train", "prefill", "decode"), default="train", help="default: train"
    )
    parser.add_argument("--slices", type=int, default=1, help="TPU slices of that shape")
    parser.add_argument("--bucket", type=int, help="of data.buckets; default: the longest clips")
    parser.add_argument(
        "--search",
        action="store_true",
        help="search rows, remat policies, meshes and compiler options; prints the best recipe",
    )
    parser.add_argument("--quick", action="store_true", help="compile with low effort")
    parser.add_argument(
        "--kernel-efficiency",
        type=float,
        metavar="FRACTION",
        default=0.5,
        help="of the peak at which attention kernels are counted (default: 0.5, an assumption)",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="directory of compiled training steps (default: ~/.cache/qa_jax/plan)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import yaml

    from qa_jax.config import load_run_config
    from qa_jax.paths import cache_home
    from qa_jax.plan import Plan, find_target, make_generation_plan, make_plan, search
    from qa_jax.plan.report import describe

    config = load_run_config(arguments.config, arguments.overrides)
    target = find_target(arguments.topology, arguments.slices)

    if not 0 < arguments.kernel_efficiency <= 1:
        raise InputError(
            "--kernel-efficiency",
            f"{arguments.kernel_efficiency} is no fraction of the peak",
            "choose one above 0 and up to 1",
        )
    cache = (arguments.cache or cache_home() / "plan").expanduser()
    options = {"quick": arguments.quick, "kernel_efficiency": arguments.kernel_efficiency}

    def report(plan: Plan, progress: str) -> None:
        lines = [f"{progress}:", *describe(plan), ""]
        print("\n".join(lines), file=sys.stderr, flush=True)

    if arguments.search:
        found = search(config, target, report, cache_dir=cache, **options)
        if found is None:
            raise InputError(target.name, "no candidate fits", "use more devices")
        plan, recipe = found
        print(yaml.safe_dump(recipe, sort_keys=False), file=sys.stderr, flush=True)
    elif arguments.job != "train":
        plan = make_generation_plan(config, target, arguments.job, arguments.bucket, **options)
    else:
        plan = make_plan(config, target, arguments.bucket, cache_dir=cache, **options)
    print(json.dumps(plan.to_dict()) if arguments.json else "\n".join(describe(plan)))
    return 0 if plan.fits else 1
