"""Generation: independent rows, greedy decoding, streaming, stopping."""

from __future__ import annotations

import numpy as np

import qa_jax
from tests.generate.batches import batch_of


def test_outputs_do_not_depend_on_other_rows(model: qa_jax.LoadedModel) -> None:
    settings = dict(max_new_tokens=40, temperature=0.0, repetition_penalty=1.3, stop_ids=())
    together = model.generate(batch_of(model, [0, 1, 2]), **settings)
    assert [len(ids) for ids in together] == [40] * 3
    for i in range(3):
        assert model.generate(batch_of(model, [i]), **settings) == [together[i]]


def test_greedy_decoding_is_the_argmax_of_the_logits(model: qa_jax.LoadedModel) -> None:
    """Each token is the argmax after all before it, recomputed without a cache."""
    batch = batch_of(model, [0])
    ids = model.generate(batch, max_new_tokens=6, temperature=0.0, stop_ids=())[0]
    for i, token in enumerate(ids):
        longer = dict(batch)
        longer["input_ids"] = np.concatenate([batch["input_ids"], [ids[:i]]], 1).astype(np.int32)
        longer["attention_mask"] = np.ones_like(longer["input_ids"])
        assert int(model.logits(longer)[0, -1].argmax()) == token


def test_streaming_equals_generate(model: qa_jax.LoadedModel) -> None:
    batch, settings = batch_of(model, [1]), dict(max_new_tokens=30, repetition_penalty=1.2)
    output = model.answer(batch, **settings)
    pieces = list(model.answer(batch, stream=True, **settings))
    assert "".join(pieces) == output and len(pieces) > 1


def test_stopping(model: qa_jax.LoadedModel) -> None:
    batch = batch_of(model, [0, 1])
    free = model.generate(batch, max_new_tokens=10, repetition_penalty=1.5, stop_ids=())
    stop = free[0][4]
    stopped = model.generate(batch, max_new_tokens=10, repetition_penalty=1.5, stop_ids=(stop,))
    assert stopped[0] == free[0][: free[0].index(stop) + 1]
    longer = model.generate(
        batch, max_new_tokens=10, repetition_penalty=1.5, stop_ids=(stop,), min_new_tokens=8
    )
    assert len(longer[0]) >= 8 and stop not in longer[0][:7]


def test_sampling_is_reproducible_with_a_seed(model: qa_jax.LoadedModel) -> None:
    batch = batch_of(model, [0, 1])
    settings = dict(max_new_tokens=12, temperature=1.5, stop_ids=())
    first = model.generate(batch, **settings, seed=1)
    assert first == model.generate(batch, **settings, seed=1)
    assert first != model.generate(batch, **settings, seed=2)
