"""Compiling in the background."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import qa_jax
from qa_jax.generate import Engine
from qa_jax.generate.warm_up import background_warm_up
from tests.generate.batches import batch_of


def test_warming_up_in_the_background(tiny_checkpoint: Path) -> None:
    model = qa_jax.load(tiny_checkpoint, num_slots=1, capacity=64)
    batch = batch_of(model, [0])
    with background_warm_up(model.engine) as thread:
        answer = model.generate(batch, max_new_tokens=8, temperature=0.0)
        thread.join()
    assert answer == model.generate(batch, max_new_tokens=8, temperature=0.0)


def test_a_warm_up_can_be_stopped(
    model: qa_jax.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model.config, model.params, num_slots=1, capacity=64)
    compiled, is_compiling, may_end = list[int](), threading.Event(), threading.Event()

    def compile_one(*_: Any, **__: Any) -> None:
        compiled.append(1)
        is_compiling.set()
        may_end.wait(60)

    monkeypatch.setattr(engine, "_compile", compile_one)
    with background_warm_up(engine):
        assert is_compiling.wait(60)
        threading.Timer(0.5, may_end.set).start()  # while the context is being left
    assert compiled == [1]
