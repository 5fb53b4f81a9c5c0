"""Metrics of generated answers during training."""

from __future__ import annotations

import jax

from qa_jax.api import LoadedModel, end_ids, for_inference
from qa_jax.config import RunConfig, SamplingConfig
from qa_jax.evaluate.evaluate import evaluate
from qa_jax.generate import Engine
from qa_jax.train.loop import Score
from qa_jax.train.run import TrainingRun
from qa_jax.typing import Params


def answer_scorer(config: RunConfig) -> Score | None:
    """What `train` takes for `train.eval_max_new_tokens`; None if it is 0."""
    max_new_tokens = config.train.eval_max_new_tokens
    return AnswerScorer(max_new_tokens) if max_new_tokens else None


class AnswerScorer:
    """Answers the held-out records greedily, and scores the answers.

    The engine, with its cache, is made at the first evaluation and stays.
    """

    def __init__(self, max_new_tokens: int) -> None:
        self._max_new_tokens = max_new_tokens
        self._engine: Engine | None = None

    def __call__(self, run: TrainingRun, params: Params) -> dict[str, float]:
        """Word error rate and exact match of each held-out set, as metrics of an evaluation."""
        config = for_inference(run.model_config)
        if self._engine is None:
            capacity = min(
                run.config.data.max_tokens + self._max_new_tokens,
                config.text.max_position_embeddings,
            )
            self._engine = Engine(config, params, run.mesh, capacity=capacity)
        self._engine.params = params
        self._engine.forget()
        ends = SamplingConfig(stop_ids=end_ids(run.processor.tokenizer))
        model = LoadedModel(config, params, run.processor, ends, self._engine)
        values = {}
        for prefix, manifest in run.config.data.eval_sets().items():
            with jax.set_mesh(None):  # the engine sets its own
                scores = evaluate(model, manifest, max_new_tokens=self._max_new_tokens)
            values[f"{prefix}_word_error_rate"] = scores.word_error_rate
            values[f"{prefix}_exact_match"] = scores.exact_match
        return values
