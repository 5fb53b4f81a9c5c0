"""`qa-jax convert`, and `python -m convert_weights`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from qa_jax.terminal import exit_code, progress_bar


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code."""
    parser = argparse.ArgumentParser("convert_weights", description=__doc__)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return exit_code(lambda: run(arguments))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the jobs and their arguments."""
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    to_jax = jobs.add_parser("to-jax", help="from Hugging Face to qa_jax")
    to_jax.add_argument(
        "source", help="a Hugging Face directory, a hub id OWNER/NAME, or a PEFT adapter"
    )
    to_hf = jobs.add_parser("to-hf", help="from qa_jax to Hugging Face")
    to_hf.add_argument("source", help="a qa_jax checkpoint or adapter")
    for job in (to_jax, to_hf):
        job.add_argument("dest", help="the new directory")
        job.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as stored")
        job.add_argument("--base", help="base model of a LoRA adapter")
    to_hf.add_argument("--shard-size", default="5GB", help="size of the largest file")
    to_hf.add_argument("--step", type=int, help="of a training run; default: the latest")
    to_hf.add_argument("--merge", action="store_true", help="merge an adapter into its base model")
    quantize = jobs.add_parser(
        "quantize", help="round linear layers to 8 bits: a qa_jax checkpoint for inference"
    )
    quantize.add_argument("source", help="a qa_jax or Hugging Face directory, or a hub id")
    quantize.add_argument("dest", help="the new directory")
    verify = jobs.add_parser("verify", help="compare two directories of either kind, bit for bit")
    verify.add_argument("source")
    verify.add_argument("checkpoint")
    verify.add_argument(
        "--logits", action="store_true", help="also compare logits; needs qa_jax[parity]"
    )
    jobs.add_parser("table", help="print the table of tensors of docs/tensors.md")


def run(arguments: argparse.Namespace) -> None:
    """Runs the job that the command line names."""
    run_job = {
        "table": _table,
        "verify": _verify,
        "to-jax": _to_jax,
        "to-hf": _to_hf,
        "quantize": _quantize,
    }
    run_job[arguments.job](arguments)


def _table(_: argparse.Namespace) -> None:
    from convert_weights.table import markdown

    print(markdown(), end="")


def _verify(arguments: argparse.Namespace) -> None:
    from convert_weights.verification import print_report, verify

    with progress_bar("comparing", is_bytes=True) as progress:
        rows, total = verify(arguments.source, arguments.checkpoint, progress=progress)
    print_report(rows, total)
    if arguments.logits:
        from convert_weights.logits import compare_logits

        print(compare_logits(arguments.source, arguments.checkpoint))


def _to_jax(arguments: argparse.Namespace) -> None:
    from convert_weights.adapters import adapter_to_jax
    from convert_weights.hf_to_jax import to_jax
    from qa_jax import hf

    if hf.is_peft(arguments.source):
        adapter_to_jax(arguments.source, arguments.dest, arguments.base)
        print(f"wrote {arguments.dest}, an adapter")
        return
    with progress_bar("converting", is_bytes=True) as progress:
        total = to_jax(arguments.source, arguments.dest, arguments.dtype, progress)
    print(f"wrote {arguments.dest}; checksum of all tensors {total}")


def _to_hf(arguments: argparse.Namespace) -> None:
    from convert_weights.adapters import adapter_to_hf
    from convert_weights.jax_to_hf import to_hf
    from qa_jax import checkpoint

    if checkpoint.is_adapter(arguments.source) and not arguments.merge:
        adapter_to_hf(arguments.source, arguments.dest, arguments.base, arguments.step)
        print(f"wrote {arguments.dest}, an adapter")
        return
    with progress_bar("converting", is_bytes=True) as progress:
        total = to_hf(
            arguments.source,
            arguments.dest,
            arguments.shard_size,
            arguments.dtype,
            arguments.step,
            progress,
        )
    print(f"wrote {arguments.dest}; checksum of all tensors {total}")


def _quantize(arguments: argparse.Namespace) -> None:
    from convert_weights.quantize import quantize

    size = quantize(arguments.source, arguments.dest)
    print(f"wrote {arguments.dest}: {size / 1e9:.2f} GB")
