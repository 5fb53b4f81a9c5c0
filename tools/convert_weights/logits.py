"""`qa-jax convert verify --logits`: both implementations on the same audio; needs [parity]."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convert_weights.hub import resolve_source
from qa_jax import load
from qa_jax.config import SAMPLE_RATE, num_audio_tokens
from qa_jax.errors import InputError

_SECONDS = 3


def compare_logits(source: str | Path, checkpoint: str | Path) -> str:
    """Runs transformers on SOURCE and qa_jax on CHECKPOINT in float32; describes the difference.

    Raises InputError if the largest difference is over 1e-4 of the largest logit, or if the
    [parity] extra is not installed.
    """
    try:
        import torch
        from transformers import Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor
    except ImportError as error:
        raise InputError(
            "--logits", f"{error.name} is not installed", 'run: pip install "qa_jax[parity]"'
        ) from None

    model = load(checkpoint, dtype="float32")
    oracle = Qwen2AudioForConditionalGeneration.from_pretrained(
        resolve_source(source), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    sweep = np.sin(np.cumsum(np.linspace(0.02, 1.5, _SECONDS * SAMPLE_RATE))).astype(np.float32)
    extract = WhisperFeatureExtractor(feature_size=model.config.audio.num_mel_bins)
    features = extract(
        0.3 * sweep, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="np"
    )
    frames = int(features["attention_mask"].sum())
    rng = np.random.default_rng(0)
    words = rng.integers(0, model.config.text.vocab_size, 16)
    words = words[words != model.config.audio_token_id]
    row = [*words[:8], *[model.config.audio_token_id] * num_audio_tokens(frames), *words[8:]]
    batch = {
        "input_ids": np.array([row]),
        "attention_mask": np.ones((1, len(row)), np.int64),
        "input_features": features["input_features"],
        "feature_attention_mask": features["attention_mask"],
    }
    logits = model.logits(batch)
    with torch.no_grad():
        reference = oracle(**{k: torch.tensor(v) for k, v in batch.items()}).logits.numpy()
    difference = float(np.abs(logits - reference).max() / np.abs(reference).max())
    agree = float((logits.argmax(-1) == reference.argmax(-1)).mean())
    if not difference <= 1e-4:
        raise InputError(
            checkpoint, f"logits differ by {difference:.1e} of the largest", "report a bug"
        )
    return (
        f"logits on {_SECONDS} s of audio differ by {difference:.1e} of the largest, "
        f"the same next token at {agree:.0%} of {len(row)} positions"
    )
