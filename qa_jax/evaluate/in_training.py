"""Metrics of generated answers during training."""

from __future__ import annotations

import jax

from qa_jax.api import LoadedModel, end_ids, for_inference
from qa_jax.config import RunConfig, SamplingConfig, TrainConfig
from qa_jax.evaluate.evaluate import evaluate
from qa_jax.evaluate.metrics import find_metric
from qa_jax.generate import Engine
from qa_jax.train.loop import Score
from qa_jax.train.run import TrainingRun
from qa_jax.typing import Params


def answer_scorer(config: RunConfig) -> Score | None:
    """What `train` takes for `train.eval_max_new_tokens`; None if it is 0."""
    return AnswerScorer(config.train) if config.train.eval_max_new_tokens else None


class AnswerScorer:
    """Answers the held-out records greedily, and scores the answers.

    The engine, with its cache, is made at the first evaluation and stays.
    """

    def __init__(self, config: TrainConfig) -> None:
        for name in config.eval_metrics:
            find_metric(name, config.eval_normalizer)
        self._config = config
        self._engine: Engine | None = None

    def __call__(self, run: TrainingRun, params: Params) -> dict[str, float]:
        """The metrics of each held-out set, as those of an evaluation."""
        config = for_inference(run.model_config)
        if self._engine is None:
            capacity = min(
                run.config.data.max_tokens + self._config.eval_max_new_tokens,
                config.text.max_position_embeddings,
            )
            self._engine = Engine(config, params, run.mesh, capacity=capacity)
        self._engine.params = params
        self._engine.forget()
        ends = SamplingConfig(stop_ids=end_ids(run.processor.tokenizer))
        model = LoadedModel(config, params, run.processor, ends, self._engine)
        values: dict[str, float] = {}
        for prefix, manifest in run.config.data.eval_sets().items():
            with jax.set_mesh(None):  # the engine sets its own
                scores = evaluate(
                    model,
                    manifest,
                    metrics=self._config.eval_metrics,
                    normalizer=self._config.eval_normalizer,
                    language=self._config.eval_language,
                    max_new_tokens=self._config.eval_max_new_tokens,
                )
            values |= {f"{prefix}_{name}": value for name, value in scores.values.items()}
        return values
