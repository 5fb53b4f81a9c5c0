"""Preference optimization against TRL's DPOTrainer: loss, rewards, gradients, step after step."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qa_jax import load
from qa_jax.config import DPOConfig, OptimizerConfig, RunConfig, TrainConfig, num_frames
from qa_jax.data import TrainBatch, load_audio
from qa_jax.model import bind
from qa_jax.train.objectives import completion_log_probs, make_objective
from qa_jax.train.optimizer import make_optimizer, make_trainable_mask
from qa_jax.train.run import make_models, make_run_step
from qa_jax.train.step import TrainState
from qa_jax.trees import flatten_dict, partition
from tests.conftest import make_waveform
from tests.parity.conftest import by_path, random_reference, save

RATE, EPS = 5e-3, 1e-4


class Pairs(NamedTuple):
    """One step's pairs: rows of chosen responses, then rows of rejected ones."""

    tokens: np.ndarray
    mask: np.ndarray
    answers: np.ndarray
    waveforms: list[np.ndarray]


def recordings() -> list[np.ndarray]:
    """Real ones where they are at hand."""
    assets = os.environ.get("QA_JAX_ASSETS")
    names = ("ljspeech/LJ001-0002.flac", "ljspeech/LJ001-0004.flac")
    if assets:
        return [load_audio(Path(assets) / "audio" / name)[: 16_000 * 3] for name in names]
    return [make_waveform(1.9, 0), make_waveform(2.7, 1)]


def make_pairs(vocab: int, seed: int, asked: tuple[int, ...]) -> Pairs:
    """Questions about so many clips each, with answers of different lengths."""
    rng = np.random.default_rng(seed)
    some = recordings()
    prompts, waveforms = [], []
    for clips in asked:
        prompt = rng.integers(0, 80, 3).tolist()
        for _ in range(clips):
            waveform = some[rng.integers(2)][: int(rng.integers(8_000, 16_000))]
            waveforms.append(waveform)
            count = ((num_frames(waveform.size) - 1) // 2 + 1) // 2
            prompt += [80] * count + rng.integers(0, 80, 2).tolist()
        prompts.append(prompt)
    rows = [(p, rng.integers(81, vocab, rng.integers(3, 9)).tolist()) for p in prompts * 2]
    width = max(len(p) + len(a) for p, a in rows)
    tokens, mask = np.full((len(rows), width), 3), np.zeros((len(rows), width), np.int64)
    answers = np.zeros_like(mask)
    for i, (prompt, answer) in enumerate(rows):
        n, end = len(prompt), len(prompt) + len(answer)
        tokens[i, :end], mask[i, :end], answers[i, n:end] = prompt + answer, 1, 1
    return Pairs(tokens, mask, answers, waveforms)


def make_trl_processor(num_mel_bins: int) -> Any:
    """A processor of three words: the tokens are given, and only its padding id is used."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor, WhisperFeatureExtractor

    words = {"<pad>": 3, "<|AUDIO|>": 80, "a": 0}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="a")), pad_token="<pad>"
    )
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=num_mel_bins), tokenizer)


def collate_for_trl(pairs: Pairs, processor: Any) -> dict[str, Any]:
    """One step's pairs as TRL's model inputs."""
    import torch

    features = processor.feature_extractor(
        pairs.waveforms, sampling_rate=16_000, return_attention_mask=True, return_tensors="pt"
    )
    return {
        "input_ids": torch.tensor(pairs.tokens),
        "attention_mask": torch.tensor(pairs.mask),
        "completion_mask": torch.tensor(pairs.answers),
        "input_features": features["input_features"].repeat(2, 1, 1),
        "feature_attention_mask": features["attention_mask"].repeat(2, 1),
    }


def run_trl(model: Any, directory: Path, data: list[Pairs], **settings: Any) -> dict[str, Any]:
    """TRL's log of every step, and the gradients before it."""
    import torch
    from datasets import Dataset
    from transformers import Qwen2AudioForConditionalGeneration, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    processor = make_trl_processor(model.config.audio_config.num_mel_bins)
    gradients: list[dict[tuple[str, ...], np.ndarray]] = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            kept = by_path(model, lambda p: None if p.grad is None else p.grad.clone())
            gradients.append(kept)

    reference = Qwen2AudioForConditionalGeneration.from_pretrained(directory, dtype="float32")
    adamw = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.98), eps=EPS, weight_decay=0.0
    )
    trainer = DPOTrainer(
        model,
        reference.eval(),
        DPOConfig(
            str(directory / "trl"),
            per_device_train_batch_size=1,
            max_steps=len(data),
            logging_steps=1,
            max_grad_norm=0.0,
            max_length=None,
            gradient_checkpointing=False,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            **settings,
        ),
        data_collator=lambda rows: collate_for_trl(data[rows[0]["number"]], processor),
        # "images" keeps the trainer from tokenizing; what a row holds is made by `collate_for_trl`.
        train_dataset=Dataset.from_list([{"images": [], "number": i} for i in range(len(data))]),
        processing_class=processor,
        optimizers=(adamw, torch.optim.lr_scheduler.LambdaLR(adamw, lambda _: 1.0)),
        callbacks=[Keep()],
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(
        trainer.train_dataset
    )
    trainer.train()
    log = [row for row in trainer.state.log_history if "loss" in row]
    return {"log": log, "gradients": gradients}


def to_batch(one: Pairs) -> TrainBatch:
    longest = max(w.size for w in one.waveforms)
    signal = np.zeros((len(one.waveforms), -(-longest // 640) * 640 + 640), np.float32)
    for row, waveform in zip(signal, one.waveforms, strict=True):
        row[: waveform.size] = waveform
    frames = np.array([num_frames(w.size) for w in one.waveforms], np.int32)
    made = TrainBatch(
        one.tokens.astype(np.int32),
        one.mask.astype(np.int32),
        one.answers.astype(np.float32),
        signal,
        frames,
    )
    return jax.tree.map(lambda x: x[None], made)


def run_qa_jax(directory: Path, data: list[Pairs], dpo: DPOConfig) -> dict[str, Any]:
    """Our log of every step, and its gradients."""
    loaded = load(directory)
    config = RunConfig(
        model=loaded.config,
        optimizer=OptimizerConfig(
            peak_lr=RATE,
            warmup_steps=0,
            final_lr_fraction=1.0,
            eps=EPS,
            weight_decay=0.0,
            clip_global_norm=0.0,
            freeze=("encoder/embed_positions",),
        ),
        dpo=dpo,
        train=TrainConfig(objective="dpo", init_from=str(directory)),
    )
    models = make_models(loaded.config, config.lora)
    objective = make_objective(config, models, 1)
    optimizer = make_optimizer(config.optimizer, config.train.steps, models.policy)
    step = jax.jit(make_run_step(config, models, objective, optimizer))
    trainable, _ = partition(
        loaded.params, make_trainable_mask(models.policy, config.optimizer.freeze)
    )
    state = TrainState(jnp.zeros((), jnp.int32), loaded.params, optimizer.init(trainable))

    log, moments = [], [flatten_dict(jax.tree.map(jnp.zeros_like, trainable))]
    for pairs in data:
        batch = to_batch(pairs)
        if dpo.reference == "precomputed":
            rows = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
            found = jnp.sum(
                completion_log_probs(bind(models.base)(loaded.params), rows, 1, 2)[0], axis=1
            )
            batch = batch._replace(reference_log_probs=found[None])
        state, metrics = step(state, batch, loaded.params)
        log.append({k: float(v) for k, v in metrics.items()})
        every = optax.tree_utils.tree_get_all_with_path(state.opt_state, "mu")
        moments.append(flatten_dict(next(mu for _, mu in every if jax.tree.leaves(mu))))
    # The first moment is an EMA of the gradients, from which each is recovered.
    b1 = config.optimizer.b1
    gradients = [
        {path: (after[path] - b1 * m) / (1 - b1) for path, m in before.items()}
        for before, after in itertools.pairwise(moments)
    ]
    return {"log": log, "gradients": gradients}


LOSSES: dict[str, tuple[dict[str, Any], DPOConfig]] = {
    "sigmoid": ({}, DPOConfig()),
    "sigmoid per token": (
        {"loss_type": ["sigmoid_norm"], "beta": 0.5},
        DPOConfig(length_normalized=True, beta=0.5),
    ),
    "hinge": ({"loss_type": ["hinge"]}, DPOConfig("hinge", reference="precomputed")),
    "ipo": ({"loss_type": ["ipo"]}, DPOConfig("ipo")),
}


@pytest.mark.parametrize("case", LOSSES)
def test_steps_are_those_of_trl(case: str, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="needs the [parity] extra")
    model = random_reference(1)
    base = save(model, tmp_path / "base")
    steps, asked = (4, (1, 2)) if case == "sigmoid" else (2, (1,))
    data = [make_pairs(model.config.text_config.vocab_size, i, asked) for i in range(steps)]
    trl_settings, settings = LOSSES[case]
    expected = run_trl(model, base, data, **trl_settings)
    found = run_qa_jax(base, data, settings)
    if case == "sigmoid":
        assert found["log"][0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    rewards = ("rewards/chosen", "rewards/rejected")
    scale = max(abs(row[name]) for row in expected["log"] for name in rewards)
    for actual, other in zip(found["log"], expected["log"], strict=True):
        assert actual["loss"] == pytest.approx(other["loss"], rel=1e-4)
        # In the first step policy and reference are one, and rounding decides.
        if abs(other["rewards/margins"]) > 1e-4:
            assert actual["reward_accuracy"] == pytest.approx(other["rewards/accuracies"])
        for name in ("chosen", "rejected"):
            reward = other[f"rewards/{name}"]
            assert actual[f"reward_{name}"] == pytest.approx(reward, abs=1e-4 * scale)
        assert actual["reward_margin"] == pytest.approx(other["rewards/margins"], abs=1e-4 * scale)
    for actual, other in zip(found["gradients"], expected["gradients"], strict=True):
        largest = max(np.abs(g).max() for g in other.values())
        for path, gradient in actual.items():
            gradient_there = other[path].reshape(gradient.shape)
            error = np.abs(gradient - gradient_there).max()
            assert error <= 1e-4 * max(np.abs(gradient_there).max(), 1e-3 * largest), path
