"""Log-mels, prompts, ids and sampling against transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import SamplingConfig
from qa_jax.data import ByteLevelBPE, Processor, apply_chat_template, load_audio
from qa_jax.errors import InputError
from qa_jax.generate.sampling import RowSettings, exclude
from qa_jax.model import LogMel
from tests.conftest import make_waveform
from tests.model.test_frontend import signals

CLIP = "<|audio_bos|><|AUDIO|><|audio_eos|>"


def compare_log_mels(waveform: np.ndarray, bins: int) -> float:
    """Largest difference from transformers' float64 path.

    Its float32 path (taken where torch is installed) is itself up to 7e-5 off that one, so our
    distance to it is held to its own error and no more.
    """
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=bins)
    full = np.zeros((1, 480_000), np.float32)
    full[0, : waveform.size] = waveform
    actual = np.asarray(jax.jit(LogMel(bins))(full))[0]
    exact = extractor._np_extract_fbank_features(full, "cpu")[0].T
    rounded = extractor(waveform, sampling_rate=16_000)["input_features"][0].T
    assert np.abs(actual - rounded).max() < 2e-5 + np.abs(rounded - exact).max()
    return float(np.abs(actual - exact).max())


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("name", signals())
def test_log_mel(name: str, bins: int) -> None:
    assert compare_log_mels(signals()[name], bins) < 2e-5


def test_log_mel_of_real_recordings(assets: Path) -> None:
    rows = [json.loads(x) for x in (assets / "audio/manifest.jsonl").read_text().splitlines()]
    worst = 0.0
    for row in rows[::7]:
        try:
            waveform = load_audio(assets / "audio" / row["audio"], long_audio="truncate")
        except InputError:
            continue  # a clip too short for a single audio token
        worst = max(worst, compare_log_mels(waveform, 128))
    assert worst < 2e-5


@pytest.fixture(params=["small", "real"])
def processors(request: pytest.FixtureRequest, bpe_dir: Path) -> tuple[Processor, Any]:
    """Ours and transformers' over the same tokenizer files."""
    from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor, WhisperFeatureExtractor

    folder = bpe_dir
    if request.param == "real":
        folder = request.getfixturevalue("assets") / "tokenizer"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="<|endoftext|>",
        padding_side="left",
    )
    reference = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)
    return Processor(ByteLevelBPE(folder)), reference


def clip(seconds: float, seed: int) -> np.ndarray:
    return make_waveform(seconds, seed)


CONVERSATIONS = {
    "single clip": [("user", [0.7, "What's that sound?"])],
    "several clips": [("user", [0.5, 2.03, "How do these differ?"])],
    "voice chat": [("user", [1.1])],
    "text only": [("user", ["Hello there."])],
    "own system prompt": [("system", "Be brief."), ("user", [0.3, "What?"])],
    "multi-turn": [
        ("user", [0.4, "What's that sound?"]),
        ("assistant", "It is the sound of glass shattering."),
        ("user", [0.9, "How about this one?"]),
        ("assistant", "Throat clearing."),
        ("user", ["Are you  sure?\n\nReally?"]),
    ],
}


def messages_of(name: str) -> list[dict]:
    messages = []
    for i, (role, content) in enumerate(CONVERSATIONS[name]):
        parts: Any = content
        if isinstance(content, list):
            parts = [
                {"type": "text", "text": p}
                if isinstance(p, str)
                else {"type": "audio", "audio": clip(p, i), "sampling_rate": 16_000}
                for p in content
            ]
        messages.append({"role": role, "content": parts})
    return messages


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_chats(processors: tuple, name: str) -> None:
    actual, reference = processors
    messages = messages_of(name)
    plain = [
        {**m, "content": [{**p, "audio": "x"} if "audio" in p else p for p in m["content"]]}
        if isinstance(m["content"], list)
        else m
        for m in messages
    ]
    text = reference.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    assert apply_chat_template(messages, add_generation_prompt=True).text == text
    clips = [
        p["audio"]
        for m in messages
        if isinstance(m["content"], list)
        for p in m["content"]
        if "audio" in p
    ]
    expected = reference(
        text=text, audio=clips or None, sampling_rate=16_000, return_tensors="np", padding=True
    )
    batch = actual.apply_chat_template(messages, add_generation_prompt=True)
    np.testing.assert_array_equal(batch["input_ids"], expected["input_ids"])
    np.testing.assert_array_equal(batch["attention_mask"], expected["attention_mask"])


def test_base_prompts_in_a_batch(processors: tuple) -> None:
    actual, reference = processors
    texts = [
        f"{CLIP}Generate the caption in English:",
        f"{CLIP}Detect the language and recognize the speech: <|en|>",
        f"{CLIP} and {CLIP}",
    ]
    clips = [clip(0.5, 0), clip(3.21, 1), clip(0.021, 2), clip(1, 3)]
    batch = actual(texts, clips, sampling_rate=16_000)
    expected = reference(
        text=texts, audio=clips, sampling_rate=16_000, return_tensors="np", padding=True
    )
    for key in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(batch[key], expected[key])


@pytest.mark.parametrize(
    "changes",
    [
        dict(top_k=3),
        dict(top_p=0.6),
        dict(top_k=7, top_p=0.8),
        dict(top_k=300, top_p=0.99),
        dict(min_p=0.1),
        dict(top_k=50, top_p=0.9, min_p=0.02),
        {},
    ],
)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.9])
@pytest.mark.parametrize("vocab", [40, 1000])
def test_sampling(changes: dict, temperature: float, vocab: int) -> None:
    """Within the candidates, beyond them (top_p of a flat distribution, a large top_k)."""
    import torch
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = np.random.default_rng(0).standard_normal((5, vocab)).astype(np.float32) * 3
    reference = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    if "top_k" in changes:
        reference = TopKLogitsWarper(changes["top_k"])(None, reference)
    if "top_p" in changes:
        reference = TopPLogitsWarper(changes["top_p"])(None, reference)
    if "min_p" in changes:
        reference = MinPLogitsWarper(changes["min_p"])(None, reference)
    settings = RowSettings.of([SamplingConfig(temperature=temperature, **changes)] * 5)
    actual = exclude(jnp.asarray(logits) / temperature, settings)
    np.testing.assert_allclose(actual, reference.numpy(), rtol=1e-6)


def test_repetition_penalty(tmp_path: Path) -> None:
    """Greedy answers under a penalty, one row: nothing is padded, so both count the same tokens."""
    import torch

    import qa_jax
    from tests.parity.conftest import as_torch, random_batch, random_reference, save

    model = random_reference(2)
    batch = random_batch(model, 2)
    first = int((batch["input_ids"][0] == 80).sum())
    clips = np.cumsum(((batch["feature_attention_mask"].sum(1) - 1) // 2 + 1) // 2)
    n = int(np.searchsorted(clips, first)) + 1
    kept = batch["attention_mask"][0] == 1
    row = {
        "input_ids": batch["input_ids"][:1, kept],
        "attention_mask": batch["attention_mask"][:1, kept],
        "input_features": batch["input_features"][:n],
        "feature_attention_mask": batch["feature_attention_mask"][:n],
    }
    loaded = qa_jax.load(save(model, tmp_path / "hf"))
    tensors = as_torch(row, torch.float32)
    del tensors["position_ids"]
    with torch.no_grad():
        reference = model.generate(
            **tensors, max_new_tokens=32, do_sample=False, repetition_penalty=1.4
        )[:, row["input_ids"].shape[1] :]
    actual = loaded.generate(row, max_new_tokens=32, temperature=0.0, repetition_penalty=1.4)
    assert actual == reference.tolist()
