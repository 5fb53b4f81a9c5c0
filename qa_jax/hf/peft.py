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
from qa_jax.paths import AnyPath, PathLike, as_path
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


def is_peft(directory: PathLike) -> bool:
    """Whether the directory holds an adapter saved by PEFT."""
    return (as_path(directory) / CONFIG_FILE).exists()


def read_peft(directory: PathLike, config: ModelConfig) -> LoraWeights:
    """An adapter of a model of this configuration, with stacked layers.

    A layer of a stack without an adapter gets zeros, which change nothing. Layers of different rank
    or alpha are padded to the largest rank, and B takes the difference in scale. Raises InputError
    listing everything that is not plain LoRA of this model's linear layers.
    """
    path = as_path(directory) / CONFIG_FILE
    raw = read_json(path)
    problems = [] if raw.get("peft_type") == "LORA" else [f"peft_type is {raw.get('peft_type')}"]
    for name, value in _SUPPORTED.items():
        if raw.get(name) not in (value, None, []):
            problems.append(f"{name} is {raw[name]!r}, only plain LoRA is supported")
    raise_problems(path, problems, "merge the adapter with PEFT and convert the merged model")
    source = SafetensorsDir(directory, rename=lambda name: name)
    table = tensor_map(config)
    found: dict[str, dict[str, np.ndarray]] = {}
    scales: dict[str, float] = {}
    for key in source:
        match = _KEY.fullmatch(key.removeprefix(_PREFIX))
        name = released_name(f"{match['module']}.weight") if match else key
        tensor = table.get(name)
        if match is None or tensor is None or not tensor.layout.startswith("linear"):
            problems.append(f"{key}: not a LoRA matrix of a linear layer of this model")
            continue
        found.setdefault(name, {})[match["side"]] = source.read(key)
        if match["side"] == "A":
            scales[name] = _scale(match["module"], source.shape(key)[0], raw, path)
    for name, sides in found.items():
        problems += _shape_problems(table[name], sides)
    raise_problems(directory, problems, "name the adapter's own base model")
    return _stack(table, found, scales)


def _shape_problems(tensor: TensorSpec, sides: dict[str, np.ndarray]) -> list[str]:
    if set(sides) != {"A", "B"}:
        return [f"{tensor.hf}: only lora_{next(iter(sides))}"]
    out, ins = tensor.hf_shape
    if sides["A"].shape[1] == ins and sides["B"].shape == (out, sides["A"].shape[0]):
        return []
    return [f"{tensor.hf}: {sides['A'].shape} and {sides['B'].shape} for a layer {(out, ins)}"]


def _stack(
    table: dict[str, TensorSpec], found: dict[str, dict[str, np.ndarray]], scales: dict[str, float]
) -> LoraWeights:
    groups: dict[ParamPath, list[str]] = collections.defaultdict(list)
    for name in found:
        groups[table[name].path].append(name)
    num_layers = collections.Counter(t.path for t in table.values())
    flat: dict[ParamPath, np.ndarray] = {}
    for path, names in groups.items():
        tensor, scale = table[names[0]], scales[names[0]]
        outs, ins = (tuple(tensor.shape[d] for d in dims) for dims in tensor.hf_dims)
        rank = max(found[name]["A"].shape[0] for name in names)
        # Only a scale that goes into B needs more digits than the file has.
        dtype = found[names[0]]["A"].dtype
        if any(scales[name] != scale for name in names):
            dtype = np.promote_types(dtype, np.float32)
        n = num_layers[path]
        a, b = np.zeros((n, *ins, rank), dtype), np.zeros((n, rank, *outs), dtype)
        for name in names:
            side_a, side_b = found[name]["A"].T, found[name]["B"].T.astype(dtype)
            layer, r = table[name].layer or 0, side_a.shape[-1]
            a[layer, ..., :r] = side_a.reshape(*ins, r)
            b[layer, :r] = side_b.reshape(r, *outs)
            if scales[name] != scale:
                b[layer] *= scales[name] / scale
        stacked = tensor.layer is not None
        flat[(*path[:-1], "lora_a")], flat[(*path[:-1], "lora_b")] = (
            (a, b) if stacked else (a[0], b[0])
        )
    by_layer = {path[:-1]: scales[names[0]] for path, names in groups.items()}
    return LoraWeights(unflatten_dict(flat), by_layer)


def _scale(module: str, rank: int, raw: JsonDict, source: AnyPath) -> float:
    """alpha / rank, with PEFT's alpha_pattern.

    As in PEFT, the first key counts that matches the module's name, or its end from a dot on. The
    names are those of the file, or the other spelling of transformers.
    """
    alpha = raw.get("lora_alpha")
    released = released_name(f"{module}.weight")
    modules = {n.removesuffix(".weight") for n in (released, in_memory_name(released))}
    for pattern, value in (raw.get("alpha_pattern") or {}).items():
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in (module, *modules)):
            alpha = value
            break
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or alpha <= 0:
        raise InputError(source, f"lora_alpha of {module} is {alpha!r}", "give a positive number")
    return alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)


def write_peft(directory: PathLike, adapter: LoraWeights, config: ModelConfig, base: str) -> None:
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
