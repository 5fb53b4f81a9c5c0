"""Reading and writing settings: YAML recipes, command-line overrides, Hugging Face's config.json.

jsonargparse converts and checks the values. Two things are written here because it has neither:
suggestions for unknown names, and recipes that inherit from another (`base:`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from qa_jax.config.generation import parse_token_ids
from qa_jax.config.model import AudioConfig, ModelConfig, TextConfig, preset
from qa_jax.config.plain import JsonDict, to_dict, to_plain
from qa_jax.config.run import RunConfig
from qa_jax.errors import InputError, suggest
from qa_jax.paths import PathLike, read_bytes

T = TypeVar("T")

OTHER_NAMES = {
    "adapter_name_or_path": "train.init_from",
    "adam_beta1": "optimizer.b1",
    "adam_beta2": "optimizer.b2",
    "adam_epsilon": "optimizer.eps",
    "attn_implementation": "model.attention_impl",
    "bf16": "model.dtype",
    "dataset": "data.train",
    "gradient_accumulation_steps": "optimizer.grad_accum_steps",
    "gradient_checkpointing": "model.remat",
    "learning_rate": "optimizer.peak_lr",
    "logging_steps": "train.log_every",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_rank": "lora.rank",
    "lr": "optimizer.peak_lr",
    "max_grad_norm": "optimizer.clip_global_norm",
    "max_length": "data.max_tokens",
    "max_steps": "train.steps",
    "model_name_or_path": "train.init_from",
    "num_train_epochs": "train.steps",
    "packing": "data.packed_length",
    "per_device_train_batch_size": "data.buckets",
    "r": "lora.rank",
    "remat_policy": "model.remat",
    "resume_from_checkpoint": "train.output_dir",
    "rpo_alpha": "dpo.sft_weight",
    "save_steps": "train.save_every",
    "save_total_limit": "train.max_to_keep",
    "eval_steps": "train.eval_every",
}
"""Settings by the names of transformers, TRL, PEFT, ms-swift and MaxText."""


def parse(cls: type[T], raw: JsonDict, source: object, argv: Sequence[str] = ()) -> T:
    """A settings class from a nested dict, with dotted command-line overrides.

    Raises InputError for an unknown name, with the right or the nearest one, and for a value of
    the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(cls)
    known = _flat_names(to_dict(cls()))
    for name in _flat_names(raw):
        if name not in known and not any(name.startswith(f"{k}.") for k in known):
            raise InputError(source, f"unknown setting {name}", _suggest_setting(name, known))
    for argument in argv:
        name = argument.removeprefix("--").split("=")[0]
        if argument.startswith("--") and name not in known:
            remedy = _suggest_setting(name, known)
            raise InputError("command line", f"unknown setting {name}", remedy)
    try:
        namespace = parser.parse_object(to_plain(raw))
        settings = parser.instantiate(parser.parse_args(list(argv), namespace))
        return cls(**settings.as_dict())
    except ArgumentError as error:
        raise InputError(source, " ".join(str(error).split())) from None


def _suggest_setting(name: str, known: Sequence[str]) -> str:
    other = OTHER_NAMES.get(name.rpartition(".")[2])
    return f"did you mean {other}?" if other in known else suggest(name, known)


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's settings: its preset, then the recipe with its bases, then the overrides."""
    raw = read_recipe(path)
    name = raw.get("preset", RunConfig.preset)
    for i, argument in enumerate(overrides):
        if argument.startswith("--preset"):
            name = argument.partition("=")[2] or "".join(overrides[i + 1 : i + 2])
    raw = _merge({"model": to_dict(preset(name))}, raw, to_dict(RunConfig()))
    return parse(RunConfig, raw, path, overrides)


def read_recipe(path: str | Path) -> JsonDict:
    """A YAML recipe merged over the one that its `base` names, relative to the recipe's directory.

    Raises InputError for a file that is not there, or that is its own base.
    """
    chain: list[Path] = []
    merged: JsonDict = {}
    schema = to_dict(RunConfig())
    current = Path(path)
    while True:
        if current.resolve() in chain:
            raise InputError(path, f"{current} is its own base", "remove one base:")
        chain.append(current.resolve())
        raw = read_yaml(current)
        base = raw.pop("base", None)
        merged = _merge(raw, merged, schema)
        if base is None:
            return merged
        current = current.parent / str(base)


def _merge(base: JsonDict, changes: JsonDict, schema: JsonDict) -> JsonDict:
    """The base with the changes applied; sections of the schema merge, values are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old, section = base.get(key), schema.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _is_section(section):
            merged[key] = _merge(old, value, section or {})
        elif not (value is None and _is_section(section)):
            merged[key] = value
    return merged


def _is_section(value: object) -> bool:
    """Whether this is a nested section rather than a value; dicts with number keys are values."""
    return isinstance(value, dict) and bool(value) and all(isinstance(k, str) for k in value)


def _flat_names(tree: JsonDict, prefix: str = "") -> list[str]:
    """Dotted names of all values: {"a": {"b": 1}} -> ["a.b"]."""
    names: list[str] = []
    for key, value in tree.items():
        if _is_section(value):
            names += _flat_names(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def read_json(path: PathLike) -> JsonDict:
    """A JSON object from a file; raises InputError if there is none."""
    return _read(path, "JSON", json.loads)


def read_yaml(path: PathLike) -> JsonDict:
    """A mapping from a YAML file; raises InputError if there is none."""
    import yaml

    return _read(path, "YAML", lambda text: yaml.safe_load(text) or {})


def _read(path: PathLike, kind: str, load: Callable[[str], object]) -> JsonDict:
    try:
        raw = load(read_bytes(path).decode())
    except FileNotFoundError:
        raise InputError(path, "not found", "check the path") from None
    except Exception as error:  # the YAML library's errors share no base class with JSON's
        raise InputError(path, f"not readable as {kind} ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise InputError(path, f"not a {kind} mapping")
    return raw


# --- Hugging Face's config.json ------------------------------------------------------------------

_AUDIO_KEYS = [f.name for f in dataclasses.fields(AudioConfig)]
_TEXT_KEYS = [f.name for f in dataclasses.fields(TextConfig)]


def from_hf(raw: JsonDict, source: object = "config.json") -> ModelConfig:
    """Reads a Qwen2-Audio config.json in its old and new spellings.

    Absent keys take the released model's values: fine-tunes saved by transformers omit every value
    that equals a class default. Raises InputError if the file asks for something that this model
    does not compute.
    """
    if raw.get("model_type", "qwen2_audio") != "qwen2_audio":
        raise InputError(
            source, f"model_type is {raw['model_type']!r}", "only qwen2_audio is supported"
        )
    audio_raw, text_raw = raw.get("audio_config") or {}, dict(raw.get("text_config") or {})
    _refuse_unsupported(audio_raw, text_raw, source)
    rope = text_raw.get("rope_parameters") or {}
    text_raw.setdefault("rope_theta", rope.get("rope_theta", TextConfig.rope_theta))
    if raw.get("tie_word_embeddings") and "tie_word_embeddings" not in text_raw:
        text_raw["tie_word_embeddings"] = True
    if "vocab_size" in raw:
        text_raw.setdefault("vocab_size", raw["vocab_size"])

    text: JsonDict = {k: text_raw[k] for k in _TEXT_KEYS if text_raw.get(k) is not None}
    heads = text.get("num_attention_heads", TextConfig.num_attention_heads)
    text.setdefault("head_dim", text.get("hidden_size", TextConfig.hidden_size) // heads)
    if "num_attention_heads" in text:
        # Qwen2Config's default is 32 key-value heads; a file with fewer heads always names these.
        text.setdefault("num_key_value_heads", min(heads, TextConfig.num_key_value_heads))
    text["rope_theta"] = float(text["rope_theta"])
    eos = text_raw.get("eos_token_id", raw.get("eos_token_id", ()))
    # The released file has the older name.
    audio_token_id = raw.get("audio_token_id")
    if audio_token_id is None:
        audio_token_id = raw.get("audio_token_index", ModelConfig.audio_token_id)
    return ModelConfig(
        audio=AudioConfig(**{k: audio_raw[k] for k in _AUDIO_KEYS if k in audio_raw}),
        text=TextConfig(**text),
        audio_token_id=audio_token_id,
        eos_token_ids=parse_token_ids(eos),
    )


def _refuse_unsupported(audio: JsonDict, text: JsonDict, source: object) -> None:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    checks = [
        ("audio_config.activation_function", audio.get("activation_function", "gelu"), "gelu"),
        ("text_config.hidden_act", text.get("hidden_act", "silu"), "silu"),
        ("text_config.model_type", text.get("model_type", "qwen2"), "qwen2"),
        ("text_config.use_sliding_window", bool(text.get("use_sliding_window")), False),
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
    ]
    for name, value, supported in checks:
        if value != supported:
            raise InputError(source, f"{name} is {value!r}", f"only {supported!r} is implemented")


def to_hf(config: ModelConfig) -> JsonDict:
    """config.json for transformers: every value written, in the spelling that all versions read."""
    text = dataclasses.asdict(config.text)
    eos = config.eos_token_ids
    text["eos_token_id"] = list(eos) if len(eos) > 1 else (eos[0] if eos else None)
    return {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": "qwen2_audio",
        "audio_token_index": config.audio_token_id,
        "ignore_index": -100,
        "vocab_size": config.text.vocab_size,
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "audio_config": {
            "model_type": "qwen2_audio_encoder",
            **dataclasses.asdict(config.audio),
            "activation_function": "gelu",
            "scale_embedding": False,
        },
        "text_config": {
            "model_type": "qwen2",
            **text,
            "hidden_act": "silu",
            "use_sliding_window": False,
        },
    }
