"""`qa-jax data`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from qa_jax.cli import common
from qa_jax.errors import InputError
from qa_jax.terminal import progress_bar

if TYPE_CHECKING:
    from qa_jax.data import Processor


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("data", help="check, index, shard or hear a manifest")
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    check = jobs.add_parser("check", help="read everything once and name unusable records")
    check.add_argument("manifest")
    check.add_argument("--tokenizer", help="directory of a tokenizer or checkpoint: counts tokens")
    check.add_argument("--max-tokens", type=int, default=2048)
    check.set_defaults(run=run_check)
    shard = jobs.add_parser(
        "shard",
        help="copy a dataset's clips into ArrayRecord shards",
        description="Decodes and checks all clips, on all cores, and copies them into shards; run "
        "again, it goes on where it was stopped. With flags of an Apache Beam pipeline, such as "
        "--runner=DataflowRunner --project=P, that pipeline makes the shards.",
        allow_abbrev=False,
    )
    shard.add_argument("dataset")
    shard.add_argument("directory", help="the new directory")
    shard.add_argument("--records-per-shard", type=int, default=4096)
    shard.add_argument(
        "--format",
        choices=("flac", "keep"),
        default="flac",
        help="of clips: FLAC at 16 kHz, or their files' own bytes",
    )
    shard.add_argument("--processes", type=int, help="default: all cores")
    shard.set_defaults(run=run_shard, takes_settings=True)
    index = jobs.add_parser(
        "index", help="measure a manifest once, so that training starts without opening its clips"
    )
    index.add_argument("manifest")
    index.add_argument("--tokenizer", required=True, help="directory of a tokenizer or checkpoint")
    index.add_argument("--long-audio", choices=("error", "truncate"), default="error")
    index.add_argument("--prompt", default="", help="as data.prompt")
    index.add_argument("--threads", type=int, default=8, help="that read clips' headers")
    index.set_defaults(run=run_index)
    preview = jobs.add_parser(
        "preview",
        help="a page with what training hears: log-mels, sounds, and text with its loss weights",
        allow_abbrev=False,
    )
    common.add_settings(preview)
    preview.add_argument("--records", type=int, default=8, help="how many, evenly spaced")
    preview.add_argument("--draws", type=int, default=5, help="epochs of each, with augmentation")
    preview.add_argument("--output", default="preview", help="directory of the page")
    preview.set_defaults(run=run_preview)


def run_check(arguments: argparse.Namespace) -> int:
    from qa_jax.data.check import check_manifest, summary

    processor = _processor(arguments.tokenizer) if arguments.tokenizer else None
    with progress_bar("reading") as progress:
        report = check_manifest(
            arguments.manifest, processor, max_tokens=arguments.max_tokens, progress=progress
        )
    for line in (*report.problems, *summary(report)):
        print(line)
    return 2 if report.problems else 0


def _processor(directory: str) -> Processor:
    from qa_jax.data import Processor, load_tokenizer

    tokenizer = load_tokenizer(directory)
    if tokenizer is None:
        raise InputError(directory, "no tokenizer here", "name its directory")
    return Processor(tokenizer)


def run_index(arguments: argparse.Namespace) -> int:
    from qa_jax.data.index_builder import build_index

    with progress_bar("indexing", is_bytes=True) as progress:
        summary = build_index(
            arguments.manifest,
            _processor(arguments.tokenizer),
            long_audio=arguments.long_audio,
            prompt=arguments.prompt,
            num_threads=arguments.threads,
            progress=progress,
        )
    for error in summary.errors:
        print(error)
    print(
        f"{summary.num_records:,} usable records ({summary.num_measured:,} measured now), "
        f"{len(summary.errors):,} unusable; {summary.path}"
    )
    return 2 if summary.errors else 0


def run_shard(arguments: argparse.Namespace) -> int:
    from qa_jax.data.shard import shard

    with progress_bar("sharding") as progress:
        summary = shard(
            arguments.dataset,
            arguments.directory,
            records_per_shard=arguments.records_per_shard,
            audio_format=arguments.format,
            num_processes=arguments.processes,
            beam_options=arguments.overrides or None,
            progress=progress,
        )
    for error in summary.errors:
        print(error)
    print(
        f"{summary.num_clips:,} clips in {summary.num_shards:,} shards, {len(summary.errors):,} "
        f"records left out; train with {arguments.directory}/manifest.jsonl"
    )
    return 2 if summary.errors else 0


def run_preview(arguments: argparse.Namespace) -> None:
    from qa_jax.config import load_run_config
    from qa_jax.data import Processor, TrainDataset
    from qa_jax.model.frontend import LogMel
    from qa_jax.train.objectives import objective_class
    from qa_jax.train.preview import heard_records, write_page
    from qa_jax.train.run import find_tokenizer, make_model_config

    config = load_run_config(arguments.config, arguments.overrides)
    _, tokenizer = find_tokenizer(config)
    log_mel = LogMel(make_model_config(config, tokenizer).audio.num_mel_bins)
    processor = Processor(tokenizer, config.data.long_audio)
    completions = objective_class(config.train.objective).num_completions
    data = TrainDataset(config.data, processor, num_completions=completions, augment=config.augment)
    records = heard_records(data, log_mel, arguments.records, arguments.draws)
    print(f"open {write_page(records, arguments.output)}")
