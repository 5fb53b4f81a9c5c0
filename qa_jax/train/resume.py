"""Resuming a run: which settings may differ from those that it began with."""

from __future__ import annotations

import re

import yaml

from qa_jax.checkpoint import all_steps
from qa_jax.config import JsonDict, RunConfig, read_yaml, to_dict
from qa_jax.errors import InputError
from qa_jax.paths import as_path, write_whole

RUN_FILE = "run.yaml"

FIXED_SETTINGS = (
    r"model\.(audio|text)\..*",
    r"data\.(tokenizer|buckets|packed_length|max_tokens|long_audio|seed)",
    r"augment\.speed",
    r"optimizer\.(name|mu_dtype|freeze|grad_accum_steps|lr_multipliers|layer_decay)",
    r"lora\..*",
    r"dpo\..*",
    r"train\.(seed|init_from|objective|ema_decay|length_exponent|max_skipped_steps)",
)
"""Settings that decide what a saved state means: parameters, optimizer state, order of records."""
_RECORDS = "records"


def write_run(config: RunConfig, records: str) -> None:
    """Writes a run's settings and the digest of its records into its output directory."""
    path = as_path(config.train.output_dir) / RUN_FILE
    text = yaml.safe_dump({**to_dict(config), _RECORDS: records}, sort_keys=False)
    write_whole(path, text)


def changed_settings(config: RunConfig, records: str) -> list[str]:
    """Lines that tell which settings changed since the run in the output directory began.

    Raises InputError naming a changed setting with which its saved state cannot be continued, or
    records that are not those that it began with.
    """
    path = as_path(config.train.output_dir) / RUN_FILE
    if not all_steps(config.train.output_dir) or not path.exists():  # nothing to continue
        return []
    before = read_yaml(path)
    began_with = before.pop(_RECORDS, records)
    schema = to_dict(RunConfig())
    old = _flat(schema, schema) | _flat(before, schema)
    new = _flat(to_dict(config), schema)
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name) or name in ("train.output_dir", "train.resume"):
            continue
        if any(re.fullmatch(pattern, name) for pattern in FIXED_SETTINGS):
            raise InputError(
                name,
                f"is {new.get(name)!r}, and the run in {config.train.output_dir} began with "
                f"{old.get(name)!r}",
                "use that value, or name another train.output_dir",
            )
        lines.append(f"resuming with {name} {new.get(name)!r} (was {old.get(name)!r})")
    if began_with != records:
        raise InputError(
            "data.train",
            f"its records are not those that the run in {config.train.output_dir} began with",
            "restore them, or name another train.output_dir",
        )
    return lines


def _flat(raw: JsonDict, schema: JsonDict, prefix: str = "") -> JsonDict:
    """Values by dotted name; dicts that are no section, such as data.buckets, are values."""
    found: JsonDict = {}
    for key, value in raw.items():
        section = schema.get(key)
        is_section = isinstance(section, dict) and isinstance(next(iter(section), 0), str)
        if is_section and isinstance(value, dict) and isinstance(section, dict):
            found |= _flat(value, section, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
