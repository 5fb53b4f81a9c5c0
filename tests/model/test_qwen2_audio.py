"""The whole model: merging audio embeddings, padding, and full-size shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax.config import ModelConfig, OptimizerConfig, RunConfig, preset
from qa_jax.data import TrainBatch
from qa_jax.model import AudioInput, Qwen2Audio, bind, initialize
from qa_jax.model.qwen2_audio import merge_audio_embeddings
from qa_jax.train.models import make_models
from qa_jax.train.objectives import make_objective
from qa_jax.train.optimizer import make_optimizer, make_schedule, make_trainable_mask
from qa_jax.train.step import TrainState, make_train_step
from qa_jax.trees import partition


@pytest.mark.parametrize("num_shards", [1, 2])
def test_merging_equals_a_loop(num_shards: int) -> None:
    rng = np.random.default_rng(0)
    counts = np.array([3, 0, 4, 2, 1, 0])
    rows = [[0, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 1, 0], [0] * 8]
    is_audio = np.array(rows, bool)
    embeds, audio = rng.standard_normal((4, 8, 5)), rng.standard_normal((6, 6, 5))
    expected = embeds.copy()
    pieces = np.concatenate([audio[a, :n] for a, n in enumerate(counts)])
    expected[is_audio] = pieces
    placed = merge_audio_embeddings(
        jnp.asarray(embeds),
        jnp.asarray(is_audio),
        jnp.asarray(audio),
        jnp.asarray(counts),
        num_shards,
    )
    np.testing.assert_allclose(placed, expected, rtol=1e-6)


def test_padding_on_either_side_changes_nothing(tiny: ModelConfig) -> None:
    model = Qwen2Audio(tiny)
    params = initialize(model, jax.random.key(0))
    audio = AudioInput(
        jnp.asarray(np.random.default_rng(0).standard_normal((1, 12, 80))), jnp.array([8])
    )
    row = np.array([9, 6, 6, 11, 12])

    def last(tokens: np.ndarray, valid: np.ndarray) -> jax.Array:
        m = bind(model)(params)
        batch = jnp.asarray(tokens[None]), jnp.asarray(valid[None])
        return m.logits(m(*batch, audio))[0]

    alone = last(row, np.ones(5, bool))
    left = last(np.r_[0, 0, row], np.r_[0, 0, np.ones(5)].astype(bool))[2:]
    right = last(np.r_[row, 0, 0], np.r_[np.ones(5), 0, 0].astype(bool))[:5]
    np.testing.assert_allclose(left, alone, atol=1e-5)
    np.testing.assert_allclose(right, alone, atol=1e-5)


def test_full_size_training_step_traces() -> None:
    """Two accumulated micro-batches of the 8.4B model, shapes only."""
    config = preset("qwen2_audio_7b")
    model = Qwen2Audio(config)
    params = jax.eval_shape(lambda: initialize(model, jax.random.key(0)))
    settings = OptimizerConfig(grad_accum_steps=2)
    optimizer, mask = (
        make_optimizer(settings, 2, model),
        make_trainable_mask(model, settings.freeze),
    )
    trainable, _ = partition(params, mask)
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, trainable)
    )
    batch = TrainBatch(
        tokens=jax.ShapeDtypeStruct((2, 2, 512), jnp.int32),
        segment_ids=jax.ShapeDtypeStruct((2, 2, 512), np.int32),
        loss_weights=jax.ShapeDtypeStruct((2, 2, 512), jnp.float32),
        waveform=jax.ShapeDtypeStruct((2, 2, 1004 * 160), jnp.float32),
        num_frames=jax.ShapeDtypeStruct((2, 2), jnp.int32),
    )
    run = RunConfig(model=config)
    objective = make_objective(run, make_models(config, run.lora), 1)
    step = make_train_step(objective, optimizer, mask, make_schedule(settings, 2))
    for _ in range(2):
        after, metrics = jax.eval_shape(step, state, batch)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
            lambda x: (x.shape, x.dtype), state
        )
        state = after
    assert metrics["loss"].shape == ()
