"""`qa-jax inspect`: a description of a checkpoint, read from metadata only."""

from __future__ import annotations

import collections
import math
from pathlib import Path

from convert_weights.hub import resolve_source
from convert_weights.job import CHECKSUMS_FILE, read_checksums, read_total_checksum
from convert_weights.weights import HFWeights, QaJaxWeights, Weights, open_weights
from qa_jax import checkpoint, hf
from qa_jax.config import read_json
from qa_jax.trees import flatten_dict

_PARTS = {"encoder": "audio encoder", "projector": "projector", "decoder": "text decoder"}


def describe(directory: str | Path) -> str:
    """Kind, configuration, parameters by part, dtypes, sizes and step, as lines of text."""
    found = resolve_source(directory)
    if checkpoint.is_adapter(found) or hf.is_peft(found):
        return _describe_adapter(found)
    weights = open_weights(found)
    audio, text = weights.config.audio, weights.config.text
    head = "tied to the embedding" if text.tie_word_embeddings else "untied"
    lines = [
        _kind(weights),
        f"  audio encoder  {audio.encoder_layers} layers, width {audio.d_model}, "
        f"{audio.encoder_attention_heads} heads, {audio.num_mel_bins} mel bins",
        f"  text decoder   {text.num_hidden_layers} layers, width {text.hidden_size}, "
        f"{text.num_attention_heads} heads ({text.num_key_value_heads} key-value heads), "
        f"vocabulary {text.vocab_size:,}, head {head}",
        f"  audio token    {weights.config.audio_token_id}",
        "  parameters",
    ]
    counts: dict[str, collections.Counter[str]] = {part: collections.Counter() for part in _PARTS}
    size = 0
    for name, tensor in weights.tensors.items():
        if not tensor.is_tied_copy:
            n, dtype = math.prod(tensor.shape), weights.dtype(name)
            counts[tensor.path[0]][dtype.name] += n
            size += n * dtype.itemsize
    for part, title in _PARTS.items():
        kinds = ", ".join(counts[part])
        lines.append(f"    {title:13}  {counts[part].total():>15,}  {kinds}")
    total = sum(c.total() for c in counts.values())
    lines.append(f"    {'all':13}  {total:>15,}  {size / 1e9:.2f} GB")
    files = [n for n in checkpoint.TOKENIZER_FILES if (weights.directory / n).is_file()]
    lines.append(f"  tokenizer      {', '.join(files) or 'none'}")
    if read_checksums(weights.directory):
        lines.append(f"  {CHECKSUMS_FILE} {read_total_checksum(weights.directory)}")
    return "\n".join(lines)


def _describe_adapter(directory: Path) -> str:
    if checkpoint.is_adapter(directory):
        adapter, config = checkpoint.load_adapter(directory)
        base, kind = config.base, "a qa_jax adapter"
    else:
        raw = read_json(directory / "adapter_config.json")
        base, kind = raw.get("base_model_name_or_path") or "unknown", "a PEFT adapter"
        if not checkpoint.is_checkpoint(base) and not (Path(base) / "config.json").is_file():
            rank, alpha = raw.get("r"), raw.get("lora_alpha")
            return f"{directory}: {kind}\n  base model     {base}\n  rank {rank}, alpha {alpha}"
        adapter = hf.read_peft(directory, checkpoint.read_model_config(base))
    arrays = flatten_dict(adapter.params)
    ranks = {x.shape[-1] for path, x in arrays.items() if path[-1] == "lora_a"}
    lines = [
        f"{directory}: {kind}",
        f"  base model     {base}",
        f"  parameters     {sum(x.size for x in arrays.values()):,}",
    ]
    lines.append(f"  rank           {', '.join(map(str, sorted(ranks)))}")
    lines += [f"  {'/'.join(path)}  scale {scale:g}" for path, scale in adapter.scales.items()]
    return "\n".join(lines)


def _kind(weights: Weights) -> str:
    if isinstance(weights, HFWeights):
        n = len(weights.files.files)
        return f"{weights.directory}: Hugging Face, {n} safetensors file{'s' if n > 1 else ''}"
    assert isinstance(weights, QaJaxWeights)
    steps = checkpoint.all_steps(weights.directory)
    others = f" (of {', '.join(map(str, steps))})" if len(steps) > 1 else ""
    return f"{weights.directory}: a qa_jax checkpoint, step {weights.step}{others}"
