"""Encoder output, logits, loss and every gradient against transformers, random configurations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qa_jax
from qa_jax.data import TrainBatch
from qa_jax.generate.inputs import prepare_inputs
from qa_jax.model import Qwen2Audio, bind
from qa_jax.train.objectives import next_token_loss
from qa_jax.trees import flatten_dict
from tests.parity.conftest import (
    as_torch,
    by_path,
    random_batch,
    random_reference,
    relative_error,
    save,
)

CONFIGS = range(20)


@contextlib.contextmanager
def wide_oracle(model: Any) -> Iterator[None]:
    """transformers computes norms, softmax and rotary tables in float32 whatever the model's type;
    a float64 comparison needs them in float64, so these three are widened for its time."""
    import torch
    from transformers.models.qwen2 import modeling_qwen2 as qwen2

    def norm(self: Any, x: Any) -> Any:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))

    def rotary(self: Any, x: Any, position_ids: Any) -> Any:
        half = self.inv_freq.shape[0]
        theta = self.config.rope_parameters["rope_theta"]
        inverse = theta ** -(torch.arange(half, dtype=torch.float64) / half)
        angle = position_ids[..., None].double() * inverse
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos(), angle.sin()

    softmax = torch.nn.functional.softmax

    def wide_softmax(x: Any, dim: Any = None, dtype: Any = None, **_: Any) -> Any:
        return softmax(x, dim=dim, dtype=torch.float64)

    before = qwen2.Qwen2RMSNorm.forward, qwen2.Qwen2RotaryEmbedding.forward
    qwen2.Qwen2RMSNorm.forward, qwen2.Qwen2RotaryEmbedding.forward = norm, rotary
    torch.nn.functional.softmax = wide_softmax
    try:
        yield
    finally:
        qwen2.Qwen2RMSNorm.forward, qwen2.Qwen2RotaryEmbedding.forward = before
        torch.nn.functional.softmax = softmax


def reference_run(model: Any, batch: dict, dtype: Any) -> dict[str, Any]:
    """Encoder output, logits, loss and gradients by our parameters' paths."""
    import torch

    model = model.to(dtype)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    tensors = as_torch(batch, dtype)
    labels = labels_of(batch)
    captured: list[Any] = []
    hook = model.model.audio_tower.register_forward_hook(
        lambda module, args, out: captured.append(out[0])
    )
    out = model(**tensors)
    hook.remove()
    # The mean over labelled tokens, as transformers' loss, in the logits' own type.
    logits = out.logits[:, :-1].reshape(-1, out.logits.shape[-1])
    target = torch.tensor(labels[:, 1:].reshape(-1))
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=-100)
    loss.backward()
    return {
        "encoder": captured[0].detach().numpy(),
        "logits": out.logits.detach().numpy(),
        "loss": loss.item(),
        "transformers_loss": model(**tensors, labels=torch.tensor(labels)).loss.item(),
        "gradients": by_path(model, lambda p: p.grad),
    }


def labels_of(batch: dict) -> np.ndarray:
    """All text is to be learned but each row's first token, which only padding comes before."""
    mask = batch["attention_mask"]
    labels = np.where(mask == 1, batch["input_ids"], -100)
    labels[batch["input_ids"] == 80] = -100
    labels[np.arange(len(mask)), mask.argmax(axis=1)] = -100
    return labels


def run_qa_jax(loaded: qa_jax.LoadedModel, batch: dict) -> dict[str, Any]:
    inputs = jax.tree.map(jnp.asarray, prepare_inputs(batch, loaded.config))
    bound = bind(Qwen2Audio(loaded.config))
    weight_dtype = loaded.params["decoder"]["norm"]["scale"].dtype
    train = TrainBatch(
        tokens=inputs.tokens,
        segment_ids=inputs.attention_mask.astype(np.int32),
        loss_weights=(labels_of(batch) >= 0).astype(weight_dtype),
        waveform=inputs.waveform,
        num_frames=inputs.num_frames,
    )
    train = jax.tree.map(jnp.asarray, train)

    def loss(params: Any) -> jax.Array:
        out = next_token_loss(bound(params), train)
        return out.loss / out.weight

    value, gradients = jax.jit(jax.value_and_grad(loss))(loaded.params)
    mel = jnp.asarray(inputs.waveform, loaded.config.dtype)
    encoded = jax.jit(lambda p: bound(p).encoder(mel, inputs.num_frames))(loaded.params)
    return {
        "encoder": np.asarray(encoded),
        "logits": loaded.logits(batch),
        "loss": float(value),
        "gradients": {p: np.asarray(g) for p, g in flatten_dict(gradients).items()},
    }


def compare(actual: dict, reference: dict, batch: dict, forward: float, backward: float) -> None:
    frames = batch["feature_attention_mask"].sum(1)
    for i, n in enumerate(((frames - 1) // 2 + 1) // 2):
        assert relative_error(actual["encoder"][i, :n], reference["encoder"][i, :n]) < forward
    valid = batch["attention_mask"] == 1
    assert relative_error(actual["logits"][valid], reference["logits"][valid]) < forward
    assert abs(actual["loss"] - reference["loss"]) < forward * reference["loss"]
    assert (
        abs(actual["loss"] - reference["transformers_loss"])
        < max(forward, 1e-5) * reference["loss"]
    )
    assert set(actual["gradients"]) == set(reference["gradients"])
    for path, gradient in actual["gradients"].items():
        expected = reference["gradients"][path].reshape(gradient.shape)
        assert relative_error(gradient, expected) < backward, path


@pytest.mark.parametrize("seed", CONFIGS)
def test_float32(seed: int, tmp_path: Path) -> None:
    import torch

    model = random_reference(seed)
    batch = random_batch(model, seed)
    loaded = qa_jax.load(save(model, tmp_path / "hf"), dtype="float32")
    assert loaded.config.text.tie_word_embeddings == (seed % 3 == 0)
    compare(
        run_qa_jax(loaded, batch), reference_run(model, batch, torch.float32), batch, 1e-5, 1e-4
    )


@pytest.mark.parametrize("seed", CONFIGS)
def test_float64(seed: int, tmp_path: Path) -> None:
    import torch

    model = random_reference(seed)
    batch = random_batch(model, seed)
    directory = save(model, tmp_path / "hf")
    with jax.enable_x64(True), wide_oracle(model):
        loaded = qa_jax.load(directory, dtype="float64")
        compare(
            run_qa_jax(loaded, batch), reference_run(model, batch, torch.float64), batch, 1e-9, 1e-8
        )


@pytest.mark.parametrize("seed", range(6))
def test_greedy_answers(seed: int, tmp_path: Path) -> None:
    """64 tokens, rows of different lengths side by side, token for token."""
    import torch

    model = random_reference(seed, num_hidden_layers=2)
    batch = random_batch(model, seed)
    loaded = qa_jax.load(save(model, tmp_path / "hf"))
    tensors = as_torch(batch, torch.float32)
    del tensors["position_ids"]
    with torch.no_grad():
        reference = model.generate(**tensors, max_new_tokens=64, do_sample=False)
    width = batch["input_ids"].shape[1]
    assert (
        loaded.generate(batch, max_new_tokens=64, temperature=0.0) == reference[:, width:].tolist()
    )


def test_the_whole_path_from_the_waveform(tmp_path: Path) -> None:
    """Waveforms here and the feature extractor's features there give the same logits."""
    import torch
    from transformers import WhisperFeatureExtractor

    from tests.conftest import make_waveform

    model = random_reference(1, num_mel_bins=128)
    loaded = qa_jax.load(save(model, tmp_path / "hf"))
    wave = make_waveform(2.0)
    extractor = WhisperFeatureExtractor(feature_size=128)
    features = extractor(
        wave, sampling_rate=16_000, return_attention_mask=True, return_tensors="np"
    )
    ids = np.array([[1, 2, *[80] * 50, 3, 4]])
    mask = np.ones_like(ids)
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "input_features": features["input_features"],
        "feature_attention_mask": features["attention_mask"],
    }
    with torch.no_grad():
        reference = model(**as_torch(batch, torch.float32)).logits.numpy()
    actual = loaded.logits(
        {"input_ids": ids, "attention_mask": mask, "audio": wave[None], "audio_lengths": [32_000]}
    )
    assert relative_error(actual, reference) < 1e-4
    assert relative_error(loaded.logits(batch), reference) < 1e-5
