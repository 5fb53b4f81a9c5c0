"""Both models on the same sound: `qa-jax convert verify --logits`. Needs the [parity] extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from convert_weights.hub import local
from qa_jax import load
from qa_jax.config import SAMPLE_RATE, token_count
from qa_jax.errors import InputError

_SECONDS = 3


def compare_logits(source: str | Path, checkpoint: str | Path) -> str:
    """Runs transformers on SOURCE and qa_jax on CHECKPOINT in float32; says how far they differ.

    Raises InputError where the largest difference is over 1e-4 of the largest logit, or where the
    [parity] extra is missing.
    """
    try:
        import torch
        from transformers import Qwen2AudioForConditionalGeneration, WhisperFeatureExtractor
    except ImportError as error:
        raise InputError(
            "--logits", f"{error.name} is not installed", 'run: pip install "qa_jax[parity]"'
        ) from None

    qa = load(checkpoint, dtype="float32")
    theirs = Qwen2AudioForConditionalGeneration.from_pretrained(
        local(source), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    sweep = np.sin(np.cumsum(np.linspace(0.02, 1.5, _SECONDS * SAMPLE_RATE))).astype(np.float32)
    extract = WhisperFeatureExtractor(feature_size=qa.config.audio.num_mel_bins)
    sound = extract(
        0.3 * sweep, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="np"
    )
    frames = int(sound["attention_mask"].sum())
    rng = np.random.default_rng(0)
    words = rng.integers(0, qa.config.text.vocab_size, 16)
    words = words[words != qa.config.audio_token_id]
    row = [*words[:8], *[qa.config.audio_token_id] * token_count(frames), *words[8:]]
    batch = {
        "input_ids": np.array([row]),
        "attention_mask": np.ones((1, len(row)), np.int64),
        "input_features": sound["input_features"],
        "feature_attention_mask": sound["attention_mask"],
    }
    ours = qa.logits(batch)
    with torch.no_grad():
        reference = theirs(**{k: torch.tensor(v) for k, v in batch.items()}).logits.numpy()
    difference = float(np.abs(ours - reference).max() / np.abs(reference).max())
    agree = float((ours.argmax(-1) == reference.argmax(-1)).mean())
    if not difference <= 1e-4:
        raise InputError(
            checkpoint, f"logits differ by {difference:.1e} of the largest", "report it"
        )
    return (
        f"logits on a {_SECONDS} s sound: they differ by {difference:.1e} of the largest, "
        f"the same next token at {agree:.0%} of {len(row)} positions"
    )
