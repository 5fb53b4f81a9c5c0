"""LoRA adapters in PEFT's format, read and written without PEFT (which needs torch)."""

from __future__ import annotations

import collections
import json
import math
import re
from pathlib import Path

import numpy as np

from qa_jax.config import JsonDict, ModelConfig, read_json
from qa_jax.errors import InputError
from qa_jax.hf.reader import SafetensorsDir, raise_problems
from qa_jax.hf.table import TensorSpec, released_name, tensor_map
from qa_jax.lora import LoraWeights
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import ParamPath

CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
# PEFT settings that change what an adapter computes, with the one supported value.
_SUPPORTED = {
    "use_dora": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "lora_bias": False,
    "trainable_token_indices": None,
}


def is_peft(directory: str | Path) -> bool:
    """Whether the directory holds an adapter saved by PEFT."""
    return (Path(directory) / CONFIG_FILE).is_file()


def read_peft(directory: str | Path, config: ModelConfig) -> LoraWeights:
    """An adapter of a model of this configuration, with stacked layers.

    A layer of a stack without an adapter gets zeros, which change nothing. Raises InputError
    listing everything that is not plain LoRA of this model's linear layers.
    """
    path = Path(directory) / CONFIG_FILE
    raw = read_json(path)
    problems = [] if raw.get("peft_type") == "LORA" else [f"peft_type is {raw.get('peft_type')}"]
    for name, value in _SUPPORTED.items():
        if raw.get(name) not in (value, None, []):
            problems.append(f"{name} is {raw[name]!r}, only plain LoRA is supported")
    raise_problems(path, problems, "merge the adapter with PEFT and convert the merged model")
    source = SafetensorsDir(directory, rename=lambda name: name)
    table = tensor_map(config)
    found: dict[str, dict[str, np.ndarray]] = {}
    for key in source:
        match = _KEY.fullmatch(key.removeprefix(_PREFIX))
        name = released_name(f"{match['module']}.weight") if match else key
        tensor = table.get(name)
        if match is None or tensor is None or not tensor.layout.startswith("linear"):
            problems.append(f"{key}: not a LoRA matrix of a linear layer of this model")
            continue
        found.setdefault(name, {})[match["side"]] = source.read(key)
    for name, sides in found.items():
        problems += _shape_problems(table[name], sides)
    raise_problems(directory, problems, "name the adapter's own base model")
    return _stack(table, found, raw)


def _shape_problems(tensor: TensorSpec, sides: dict[str, np.ndarray]) -> list[str]:
    if set(sides) != {"A", "B"}:
        return [f"{tensor.hf}: only lora_{next(iter(sides))}"]
    out, ins = tensor.hf_shape
    if sides["A"].shape[1] == ins and sides["B"].shape == (out, sides["A"].shape[0]):
        return []
    return [f"{tensor.hf}: {sides['A'].shape} and {sides['B'].shape} for a layer {(out, ins)}"]


def _stack(
    table: dict[str, TensorSpec], found: dict[str, dict[str, np.ndarray]], raw: JsonDict
) -> LoraWeights:
    flat: dict[ParamPath, np.ndarray] = {}
    scales: dict[ParamPath, float] = {}
    layers = collections.Counter(t.path for t in table.values())
    for name, sides in found.items():
        tensor = table[name]
        path = tensor.path[:-1]
        rank = sides["A"].shape[0]
        scale = _scale(name.removesuffix(".weight"), rank, raw)
        outs, ins = (tuple(tensor.shape[d] for d in dims) for dims in tensor.hf_dims)
        a, b = sides["A"].T.reshape(*ins, rank), sides["B"].T.reshape(rank, *outs)
        if tensor.layer is None:
            flat[(*path, "lora_a")], flat[(*path, "lora_b")] = a, b
            scales[path] = scale
            continue
        n = layers[tensor.path]
        stack_a = flat.setdefault((*path, "lora_a"), np.zeros((n, *a.shape), a.dtype))
        stack_b = flat.setdefault((*path, "lora_b"), np.zeros((n, *b.shape), b.dtype))
        if stack_a.shape[1:] != a.shape or scales.setdefault(path, scale) != scale:
            raise InputError(
                name, "its rank or alpha differs from other layers'", "merge it with PEFT instead"
            )
        stack_a[tensor.layer], stack_b[tensor.layer] = a, b
    return LoraWeights(unflatten_dict(flat), scales)


def _scale(module: str, rank: int, raw: JsonDict) -> float:
    """alpha / rank, with PEFT's alpha_pattern: a key matches a module's name or its end."""
    alpha = raw["lora_alpha"]
    for pattern, value in (raw.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)


def write_peft(directory: str | Path, adapter: LoraWeights, config: ModelConfig, base: str) -> None:
    """Writes an adapter in PEFT's format.

    Names are those of transformers >= 5.10 in memory, as PEFT itself writes them.

    Args:
        directory: an existing directory.
        adapter: the adapter.
        config: of its base model.
        base: directory or hub id of its base model, for PEFT to load.
    """
    from safetensors.numpy import save_file

    lora_params = {path: np.asarray(x) for path, x in flatten_dict(adapter.params).items()}
    arrays, ranks, alphas = {}, {}, {}
    for name, tensor in tensor_map(config).items():
        path = tensor.path[:-1]
        if path not in adapter.scales or tensor.path[-1] != "kernel":
            continue
        a, b = lora_params[(*path, "lora_a")], lora_params[(*path, "lora_b")]
        a, b = (a, b) if tensor.layer is None else (a[tensor.layer], b[tensor.layer])
        module = in_memory_name(name).removesuffix(".weight")
        rank = a.shape[-1]
        arrays[f"{_PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, rank).T)
        arrays[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b.reshape(rank, -1).T)
        ranks[module], alphas[module] = rank, adapter.scales[path] * rank
    directory = Path(directory)
    save_file(arrays, directory / _WEIGHTS_FILE, metadata={"format": "pt"})
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    raw = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(m): x for m, x in alphas.items() if x != alpha},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "inference_mode": True,
        **_SUPPORTED,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(raw, indent=2) + "\n")


def in_memory_name(name: str) -> str:
    """A released name as transformers >= 5.10 has it in memory."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.", 1)
