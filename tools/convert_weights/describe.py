"""What a directory holds, told without reading its numbers: `qa-jax inspect`."""

from __future__ import annotations

import collections
import math
from pathlib import Path

from convert_weights.hub import local
from convert_weights.weights import HuggingFace, Ours, Weights, open_weights
from convert_weights.work import CHECKSUMS_FILE, recorded, recorded_whole
from qa_jax import checkpoint

_PARTS = {"encoder": "audio encoder", "projector": "projector", "decoder": "text decoder"}


def describe(directory: str | Path) -> str:
    """Kind, configuration, parameters by part, types, sizes and step, as lines of text."""
    weights = open_weights(local(directory))
    audio, text = weights.config.audio, weights.config.text
    head = "tied to the embedding" if text.tie_word_embeddings else "of its own"
    lines = [
        _kind(weights),
        f"  audio encoder  {audio.encoder_layers} layers, width {audio.d_model}, "
        f"{audio.encoder_attention_heads} heads, {audio.num_mel_bins} mel bins",
        f"  text decoder   {text.num_hidden_layers} layers, width {text.hidden_size}, "
        f"{text.num_attention_heads} heads ({text.num_key_value_heads} of keys and values), "
        f"vocabulary {text.vocab_size:,}, head {head}",
        f"  audio token    {weights.config.audio_token_id}",
        "  parameters",
    ]
    counts: dict[str, collections.Counter[str]] = {part: collections.Counter() for part in _PARTS}
    size = 0
    for name, tensor in weights.tensors.items():
        if not tensor.copy_of_tied:
            n, dtype = math.prod(tensor.shape), weights.dtype(name)
            counts[tensor.path[0]][dtype.name] += n
            size += n * dtype.itemsize
    for part, title in _PARTS.items():
        kinds = ", ".join(counts[part])
        lines.append(f"    {title:13}  {counts[part].total():>15,}  {kinds}")
    total = sum(c.total() for c in counts.values())
    lines.append(f"    {'all':13}  {total:>15,}  {size / 1e9:.2f} GB")
    files = [n for n in checkpoint.TEXT_FILES if (weights.directory / n).is_file()]
    lines.append(f"  text files     {', '.join(files) or 'none: it has no tokenizer'}")
    if recorded(weights.directory):
        lines.append(f"  {CHECKSUMS_FILE} {recorded_whole(weights.directory)}")
    return "\n".join(lines)


def _kind(weights: Weights) -> str:
    if isinstance(weights, HuggingFace):
        n = len(weights.files.files)
        return f"{weights.directory}: Hugging Face, {n} safetensors file{'s' if n > 1 else ''}"
    assert isinstance(weights, Ours)
    steps = checkpoint.Checkpoints(weights.directory).all()
    others = f" (of {', '.join(map(str, steps))})" if len(steps) > 1 else ""
    return f"{weights.directory}: a qa_jax checkpoint, step {weights.step}{others}"
