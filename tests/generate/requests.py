"""Random requests."""

from __future__ import annotations

import numpy as np

import qa_jax
from qa_jax.config import SamplingConfig
from qa_jax.generate import Request, requests_of_batch
from tests.conftest import CLIP, make_waveform

WORDS = "turn on the light in the kitchen what is three plus four a man or a woman".split()


def random_settings(rng: np.random.Generator) -> SamplingConfig:
    stop_ids = tuple(rng.integers(10, 384, rng.integers(0, 8)).tolist())
    settings = dict(
        max_new_tokens=int(rng.integers(1, 30)),
        temperature=float(rng.choice([0.0, 0.7, 1.5])),
        top_k=int(rng.choice([0, 3, 40])),
        top_p=float(rng.choice([1.0, 0.9, 0.5])),
        min_p=float(rng.choice([0.0, 0.05])),
        repetition_penalty=float(rng.choice([1.0, 1.3])),
        presence_penalty=float(rng.choice([0.0, 0.5])),
        frequency_penalty=float(rng.choice([0.0, 0.3])),
        stop_ids=stop_ids,
        logit_bias=tuple((i, float(rng.choice([-2, 2]))) for i in {*stop_ids, 11}),
        seed=int(rng.integers(2**32)),
    )
    return SamplingConfig(**settings)  # type: ignore[arg-type]


def random_requests(model: qa_jax.LoadedModel, count: int, seed: int) -> list[Request]:
    """Prompts of 1 to 400 tokens with up to two of six clips; some share their beginnings."""
    rng = np.random.default_rng(seed)
    clips = [make_waveform(rng.uniform(0.1, 3), i) for i in range(6)]
    system = " ".join(rng.choice(WORDS, 60))
    requests = []
    for _ in range(count):
        chosen = rng.integers(0, 6, rng.choice([0, 1, 1, 2]))
        text = CLIP * len(chosen) + " ".join(rng.choice(WORDS, rng.integers(1, 40)))
        text = system + text if rng.random() < 0.3 else text
        batch = model.require_processor()(text, [(clips[i], 16_000) for i in chosen])
        requests += requests_of_batch(batch, model.config, random_settings(rng))
    return requests
