"""One command, `qa-jax`, with a subcommand for each job."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qa_jax.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; 2 is the exit code of every input that cannot be used."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not arguments.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    _one_line_warnings()
    try:
        return arguments.run(arguments, rest) or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("qa-jax", description=__doc__, allow_abbrev=False)
    parser.set_defaults(takes_settings=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a model",
        description="Trains, or goes on training where the output directory was left. Any setting "
        "is given as --SECTION.NAME VALUE, for example --train.steps 100; see qa_jax/config.py.",
        allow_abbrev=False,
    )
    _take_settings(train)
    train.add_argument(
        "--show-sharding", action="store_true", help="where each parameter will lie; trains nothing"
    )
    train.set_defaults(run=_train)

    plan = commands.add_parser(
        "plan",
        help="what training needs on a TPU topology or on GPUs, before anyone pays",
        description="Compiles the training step for a TPU topology and tells its memory, network, "
        "time and MFU; for GPUs these are counted. Settings are given as for train.",
        allow_abbrev=False,
    )
    _take_settings(plan)
    plan.add_argument("--topology", required=True, help="v5e:4x4, v5p:2x2x1, v6e:2x4, h200:1, ...")
    plan.add_argument(
        "--job", choices=("train", "prefill", "decode"), default="train", help="default: train"
    )
    plan.add_argument("--slices", type=int, default=1, help="TPU slices of that shape")
    plan.add_argument("--bucket", type=int, help="of data.buckets; default: the longest clips")
    plan.add_argument(
        "--search", action="store_true", help="try batches, remat policies and meshes"
    )
    plan.add_argument("--quick", action="store_true", help="a look: compile with little effort")
    plan.add_argument("--json", action="store_true", help="for machines")
    plan.set_defaults(run=_plan)

    generate = commands.add_parser("generate", help="answer one prompt about sound")
    _add_model(generate)
    generate.add_argument("--audio", action="append", default=[], help="a sound file; repeatable")
    generate.add_argument("--prompt", help="the instruction; without one, it is voice chat")
    generate.add_argument(
        "--raw", action="store_true", help="no chat form: the base model's raw prompts"
    )
    _add_sampling(generate)
    generate.set_defaults(run=_generate)

    chat = commands.add_parser("chat", help="talk: text, and :audio FILE for sound")
    _add_model(chat)
    _add_sampling(chat)
    chat.set_defaults(run=_chat)

    evaluate = commands.add_parser(
        "evaluate", help="answer a manifest and score the answers; of pairs, which is likelier"
    )
    _add_model(evaluate)
    evaluate.add_argument("manifest")
    evaluate.add_argument("--output", help="predictions; MANIFEST.predictions.jsonl by default")
    evaluate.add_argument("--batch-size", type=int, default=8)
    evaluate.add_argument("--max-new-tokens", type=int, default=256)
    evaluate.set_defaults(run=_evaluate)

    tokenizer = commands.add_parser("tokenizer", help="train a SentencePiece model on a text file")
    tokenizer.add_argument("text")
    tokenizer.add_argument("--vocab-size", type=int, default=8000)
    tokenizer.add_argument("--output", required=True, help="directory of the new tokenizer")
    tokenizer.set_defaults(run=_tokenizer)

    convert = commands.add_parser("convert", help="Hugging Face's format to ours and back")
    jobs = convert.add_subparsers(dest="job", required=True, metavar="JOB")
    for name, source, dest in (
        ("to-jax", "a Hugging Face directory, a hub id as OWNER/NAME, or a PEFT adapter", "ours"),
        ("to-hf", "a qa_jax checkpoint, or an adapter of ours", "Hugging Face's"),
    ):
        job = jobs.add_parser(name, help=f"from {source}")
        job.add_argument("source", help=source)
        job.add_argument("dest", help=f"the new directory, {dest}")
        job.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as stored")
        job.add_argument("--base", help="of a LoRA adapter: the model it belongs to")
        if name == "to-hf":
            job.add_argument("--shard-size", default="5GB", help="largest file")
            job.add_argument("--step", type=int, help="of a training run; default: the latest")
            job.add_argument(
                "--merge", action="store_true", help="an adapter into its model, not on its own"
            )
    verify = jobs.add_parser("verify", help="compare two directories of either kind, bit for bit")
    verify.add_argument("source")
    verify.add_argument("checkpoint")
    verify.add_argument(
        "--logits", action="store_true", help="and run both on a sound: needs qa_jax[parity]"
    )
    jobs.add_parser("table", help="print the table of tensors, as in docs/tensors.md")
    convert.set_defaults(run=_convert)

    data = commands.add_parser("data", help="check a manifest, or pack it into shards")
    data_jobs = data.add_subparsers(dest="job", required=True, metavar="JOB")
    check = data_jobs.add_parser("check", help="read everything once; name all that is unusable")
    check.add_argument("manifest")
    check.add_argument("--tokenizer", help="directory of a tokenizer or checkpoint: counts tokens")
    check.add_argument("--max-tokens", type=int, default=2048)
    check.set_defaults(run=_data_check)
    pack = data_jobs.add_parser("pack", help="a manifest's clips into few ArrayRecord files")
    pack.add_argument("manifest")
    pack.add_argument("directory", help="the new directory")
    pack.add_argument("--shard-size", default="1GB", help="about how large a shard becomes")
    pack.set_defaults(run=_data_pack)

    inspect = commands.add_parser("inspect", help="tell what a checkpoint is")
    inspect.add_argument("directory", help="ours, Hugging Face's, or a hub id")
    inspect.set_defaults(run=_inspect)

    test = commands.add_parser("selftest", help="is new hardware to be trusted? a few minutes")
    test.set_defaults(run=_selftest)

    demo = commands.add_parser("demo", help="train a small model on made-up sound and talk to it")
    demo.add_argument("--output", default="runs/demo")
    demo.add_argument(
        "--configs", default="configs", help="directory of demo_pretrain.yaml, demo.yaml"
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument(
        "--stages", action="store_true", help="and then to prefer better answers: all three stages"
    )
    demo.set_defaults(run=_demo)
    return parser


def _take_settings(parser: argparse.ArgumentParser) -> None:
    """A recipe, and any setting as --SECTION.NAME VALUE, which the parser leaves over."""
    parser.add_argument("--config", required=True, help="YAML of settings that differ")
    parser.set_defaults(takes_settings=True)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="ours, or Hugging Face's directory")
    parser.add_argument("--adapter", help="a LoRA adapter to merge in: ours, or PEFT's directory")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as stored")
    parser.add_argument("--long-audio", choices=("error", "truncate"), default="error")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling (default: generation_config.json's, else greedy)")
    group.add_argument("--max-new-tokens", type=int)
    group.add_argument("--min-new-tokens", type=int)
    group.add_argument("--temperature", type=float, help="0 is greedy")
    group.add_argument("--top-k", type=int)
    group.add_argument("--top-p", type=float)
    group.add_argument("--repetition-penalty", type=float)
    group.add_argument("--seed", type=int)
    parser.add_argument(
        "--sampling-rate", type=int, help="Hz of .npy samples, which hold no rate of their own"
    )


def _load(arguments: argparse.Namespace) -> Any:
    from qa_jax.api import load

    return load(
        arguments.checkpoint,
        arguments.dtype,
        long_audio=arguments.long_audio,
        adapter=arguments.adapter,
    )


def _sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    names = [
        "max_new_tokens",
        "min_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "seed",
    ]
    return {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}


def _train(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from qa_jax.config import run_config
    from qa_jax.parallel import join_processes
    from qa_jax.train import Stopped, train
    from qa_jax.train.setup import prepare
    from qa_jax.train.sharding import sharding_report

    join_processes()
    config = run_config(arguments.config, overrides)
    if arguments.show_sharding:
        run = prepare(config)
        print("\n".join(sharding_report(run.models.model, run.mesh)))
        return 0
    try:
        values = train(config)
    except Stopped as stopped:
        print(stopped)
        return 0
    print(f"step {config.train.steps}: loss {values['loss']:.4f}, in {config.train.output}")
    return 0


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import json

    from qa_jax.config import run_config
    from qa_jax.plan import Plan, find_target, make_generation_plan, make_plan, search
    from qa_jax.plan.report import describe

    config = run_config(arguments.config, overrides)
    target = find_target(arguments.topology, arguments.slices)

    def tried(plan: Plan) -> None:
        print("\n".join(describe(plan)), end="\n\n", file=sys.stderr, flush=True)

    if arguments.search:
        plan = search(config, target, tried, arguments.quick)
        if plan is None:
            raise InputError(target.name, "nothing that was tried fits", "take more devices")
    elif arguments.job != "train":
        plan = make_generation_plan(
            config, target, arguments.job, arguments.bucket, arguments.quick
        )
    else:
        plan = make_plan(config, target, arguments.bucket, arguments.quick)
    print(json.dumps(plan.to_dict()) if arguments.json else "\n".join(describe(plan)))
    return 0 if plan.fits else 1


def _generate(arguments: argparse.Namespace, _: list[str]) -> None:
    from qa_jax.data.audio import load_audio
    from qa_jax.data.chat import PLACEHOLDER

    if not arguments.audio and not arguments.prompt:
        raise InputError("generate", "neither --audio nor --prompt", "give at least one")
    # Sound is read before the model is loaded: a wrong path should not cost a minute.
    clips: list[Any] = [
        (
            load_audio(a, sampling_rate=arguments.sampling_rate, long_audio=arguments.long_audio),
            16000,
        )
        for a in arguments.audio
    ]
    qa = _load(arguments)
    if arguments.raw:
        text = PLACEHOLDER * len(clips) + (arguments.prompt or "")
        batch = qa.processor(text, clips)
    else:
        parts: list[dict[str, Any]] = [{"type": "audio", "audio": c} for c in clips]
        parts += [{"type": "text", "text": arguments.prompt}] if arguments.prompt else []
        batch = qa.processor.apply_chat([{"role": "user", "content": parts}])
    for piece in qa.answer(batch, stream=True, **_sampling(arguments)):
        print(piece, end="", flush=True)
    print()


def _chat(arguments: argparse.Namespace, _: list[str]) -> None:
    from qa_jax.generate.chat import converse

    converse(_load(arguments), _sampling(arguments), arguments.sampling_rate)


def _evaluate(arguments: argparse.Namespace, _: list[str]) -> None:
    from qa_jax.data.manifest import holds_pairs
    from qa_jax.evaluate import evaluate, evaluate_pairs

    output = arguments.output or str(Path(arguments.manifest).with_suffix(".predictions.jsonl"))
    pairs = holds_pairs(arguments.manifest)
    qa = _load(arguments)
    if pairs:
        with _bar("scoring") as progress:
            found = evaluate_pairs(
                qa,
                arguments.manifest,
                batch_size=arguments.batch_size,
                output=output,
                progress=progress,
            )
        print(
            f"{found.records} pairs  better answer likelier {found.preferred:.2%}  by the token "
            f"{found.per_token:.2%}  log-probabilities in {output}"
        )
        return
    with _bar("answering") as progress:
        scores = evaluate(
            qa,
            arguments.manifest,
            batch_size=arguments.batch_size,
            output=output,
            progress=progress,
            max_new_tokens=arguments.max_new_tokens,
        )
    print(
        f"{scores.records} records  word error rate {scores.word_error_rate:.2%}  "
        f"exact match {scores.exact_match:.2%}  predictions in {output}"
    )


def _data_check(arguments: argparse.Namespace, _: list[str]) -> int:
    from qa_jax.data import Processor, load_tokenizer
    from qa_jax.data.check import check_manifest, summary

    processor = None
    if arguments.tokenizer:
        tokenizer = load_tokenizer(arguments.tokenizer)
        if tokenizer is None:
            raise InputError(arguments.tokenizer, "no tokenizer here", "name its directory")
        processor = Processor(tokenizer)
    with _bar("reading") as progress:
        findings = check_manifest(
            arguments.manifest, processor, max_tokens=arguments.max_tokens, progress=progress
        )
    for line in (*findings.problems, *summary(findings)):
        print(line)
    return 2 if findings.problems else 0


def _data_pack(arguments: argparse.Namespace, _: list[str]) -> None:
    from convert_weights.shards import parse_size

    from qa_jax.data.archive import pack

    size = parse_size(arguments.shard_size)
    with _bar("packing") as progress:
        clips, shards = pack(arguments.manifest, arguments.directory, size, progress)
    print(f"{clips:,} clips in {shards:,} shards; train with {arguments.directory}/manifest.jsonl")


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, where errors go to a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _tokenizer(arguments: argparse.Namespace, _: list[str]) -> None:
    from qa_jax.data import SentencePiece

    try:
        lines = Path(arguments.text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(arguments.text, f"not readable ({error})", "give a text file") from None
    trained = SentencePiece.train(lines, arguments.output, arguments.vocab_size)
    print(f"{trained.vocab_size} pieces in {arguments.output}")


def _convert(arguments: argparse.Namespace, _: list[str]) -> None:
    from convert_weights.command import run

    run(arguments)


def _inspect(arguments: argparse.Namespace, _: list[str]) -> None:
    import convert_weights

    print(convert_weights.describe(arguments.directory))


def _selftest(_: argparse.Namespace, __: list[str]) -> int:
    import jax

    from qa_jax.selftest import selftest

    device = jax.devices()[0]
    print(f"{jax.device_count()} x {device.device_kind} ({device.platform}), jax {jax.__version__}")
    failed = 0
    for r in selftest():
        failed += not r.passed
        print(
            f"{'pass' if r.passed else 'FAIL'}  {r.name:62} {r.error:.1e} (limit {r.limit:.0e})"
            f"  {r.seconds:.1f} s",
            flush=True,
        )
    print("all checks passed" if not failed else f"{failed} checks FAILED: do not trust results")
    return 1 if failed else 0


def _demo(arguments: argparse.Namespace, _: list[str]) -> None:
    if arguments.stages:
        from qa_jax.demo.stages import run_stages

        run_stages(Path(arguments.output), Path(arguments.configs), arguments.seed)
        return
    from qa_jax.demo.run import run

    run(Path(arguments.output), Path(arguments.configs), arguments.seed)


def _one_line_warnings() -> None:
    def show(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, UserWarning):
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


if __name__ == "__main__":
    sys.exit(main())
