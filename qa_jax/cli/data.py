"""`qa-jax data`."""

from __future__ import annotations

import argparse

from qa_jax.cli import common
from qa_jax.errors import InputError
from qa_jax.terminal import progress_bar


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("data", help="check a manifest, or copy its clips into shards")
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    check = jobs.add_parser("check", help="read everything once and name unusable records")
    check.add_argument("manifest")
    check.add_argument("--tokenizer", help="directory of a tokenizer or checkpoint: counts tokens")
    check.add_argument("--max-tokens", type=int, default=2048)
    check.set_defaults(run=run_check)
    shard = jobs.add_parser("shard", help="copy a manifest's clips into ArrayRecord shards")
    shard.add_argument("manifest")
    shard.add_argument("directory", help="the new directory")
    shard.add_argument("--shard-size", default="1GB", help="approximate size of a shard")
    shard.set_defaults(run=run_shard)


def run_check(arguments: argparse.Namespace) -> int:
    from qa_jax.data import Processor, load_tokenizer
    from qa_jax.data.check import check_manifest, summary

    processor = None
    if arguments.tokenizer:
        tokenizer = load_tokenizer(arguments.tokenizer)
        if tokenizer is None:
            raise InputError(arguments.tokenizer, "no tokenizer here", "name its directory")
        processor = Processor(tokenizer)
    with progress_bar("reading") as progress:
        report = check_manifest(
            arguments.manifest, processor, max_tokens=arguments.max_tokens, progress=progress
        )
    for line in (*report.problems, *summary(report)):
        print(line)
    return 2 if report.problems else 0


def run_shard(arguments: argparse.Namespace) -> None:
    from convert_weights.shards import parse_size

    from qa_jax.data.shard import shard

    shard_bytes = parse_size(arguments.shard_size)
    with progress_bar("sharding") as progress:
        clips, shards = shard(arguments.manifest, arguments.directory, shard_bytes, progress)
    print(f"{clips:,} clips in {shards:,} shards; train with {arguments.directory}/manifest.jsonl")
