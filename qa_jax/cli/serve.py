"""`qa-jax serve`."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from qa_jax.cli import common
from qa_jax.errors import InputError


def add_parser(commands: common.Subparsers) -> None:
    parser = commands.add_parser("serve", help="serve a model to clients of OpenAI's API")
    common.add_model(parser)
    parser.set_defaults(run=run, long_audio="window")
    parser.add_argument("--name", help="of the model in requests; default: as --checkpoint")
    parser.add_argument(
        "--adapters",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="LoRA adapters, each served as a model of its own",
    )
    parser.add_argument(
        "--api-key-file", help="a file of keys, one a line; or set QA_JAX_API_KEYS=KEY,KEY"
    )
    parser.add_argument("--raw", action="store_true", help="no chat template: for the base model")
    parser.add_argument("--num-slots", type=int, help="answers generated together")
    parser.add_argument("--capacity", type=int, help="tokens of a prompt with its answer")
    parser.add_argument(
        "--no-warm-up", action="store_true", help="compile programs when they are first needed"
    )
    _add_limits(parser)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    from qa_jax.config.serve import ServeConfig

    group = parser.add_argument_group("address and limits")
    for f in dataclasses.fields(ServeConfig):
        name, text = f"--{f.name.replace('_', '-')}", f"{f.metadata['help']}; default: {f.default}"
        if isinstance(f.default, bool):
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=f.default)
        else:
            group.add_argument(name, type=type(f.default), default=f.default, help=text)


def run(arguments: argparse.Namespace) -> None:
    try:
        from qa_jax.serve import make_app, run_app, start_logs
    except ImportError as error:
        raise InputError("serve", f"{error.name} is missing", "pip install qa_jax[serve]") from None

    from qa_jax.config.serve import ServeConfig

    names = [f.name for f in dataclasses.fields(ServeConfig)]
    config = ServeConfig(**{name: getattr(arguments, name) for name in names})
    keys = _keys(arguments.api_key_file)
    config.check(len(keys))
    adapters = _adapters(arguments.adapters)
    start_logs()
    model = common.load_model(arguments, arguments.num_slots, arguments.capacity)
    model.require_processor()
    models = {arguments.name or arguments.checkpoint: model}
    for name, directory in adapters.items():
        if name in models:
            raise InputError("--adapters", f"{name!r} is given twice", "give each its name")
        models[name] = model.with_adapter(directory)
    app = make_app(
        models,
        config,
        keys=keys,
        audio_hosts=arguments.audio_hosts,
        is_raw=arguments.raw,
        warm_up=not arguments.no_warm_up,
    )
    run_app(app, config)


def _adapters(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, _, directory = text.partition("=")
        if not name or not directory or not Path(directory).is_dir():
            raise InputError("--adapters", f"{text!r}", "write NAME=DIR of an adapter")
        found[name] = directory
    return found


def _keys(path: str | None) -> list[str]:
    """Keys of a file, or of QA_JAX_API_KEYS."""
    if path is None:
        return os.environ.get("QA_JAX_API_KEYS", "").replace(",", " ").split()
    try:
        keys = Path(path).read_text().split()
    except OSError as error:
        raise InputError(
            path, f"cannot be read ({error.strerror})", "name a file of keys"
        ) from None
    if not keys:
        raise InputError(path, "contains no key", "write one a line")
    return keys
