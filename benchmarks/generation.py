"""The engine against transformers on this machine's CPU: run by `make bench`.

64 requests with clips of 1 to 30 s and 8 to 64 new tokens: transformers answers them one at a time
and in batches of 8, the engine through 8 slots. Both have the same random weights (float32) and
start from waveforms; greedy answers are compared. Also the time to the first token of one request,
and of a second turn on the same clip. Medians are written to benchmarks/RESULTS.md between its
markers.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch
import transformers
from against_transformers import machine, parse_runs, reference
from common import replace_section

import qa_jax
from qa_jax.config import HOP_LENGTH, SamplingConfig, num_audio_tokens, preset
from qa_jax.generate import Clip, Request, num_compilations

NUM_REQUESTS, BATCH = 64, 8


class Work(NamedTuple):
    """A prompt's ids, its clip, and how many tokens are to be generated."""

    ids: np.ndarray
    clip: Clip
    new_tokens: int


def make_requests() -> list[Work]:
    rng, requests = np.random.default_rng(0), []
    placeholder = preset("bench").audio_token_id
    for _ in range(NUM_REQUESTS):
        frames = int(rng.uniform(100, 3000))
        samples = 0.1 * rng.standard_normal(frames * HOP_LENGTH).astype(np.float32)
        text = rng.integers(0, 30_000, int(rng.integers(10, 60)))
        audio = np.full(num_audio_tokens(frames), placeholder)
        ids = np.concatenate([text[:8], audio, text[8:]])
        requests.append(Work(ids, Clip(samples, frames), int(rng.integers(8, 65))))
    return requests


class Peer:
    """transformers, as its documentation generates: left-padded batches."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.extractor = transformers.WhisperFeatureExtractor(feature_size=128)

    def generate(self, requests: list[Work], new_tokens: int) -> list[list[int]]:
        audio = self.extractor(
            [work.clip.samples for work in requests],
            sampling_rate=16_000,
            return_attention_mask=True,
            padding="max_length",
            return_tensors="pt",
        )
        width = max(work.ids.size for work in requests)
        ids = torch.zeros((len(requests), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, work in enumerate(requests):
            ids[i, width - work.ids.size :] = torch.tensor(work.ids)
            mask[i, width - work.ids.size :] = 1
        with torch.no_grad():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                input_features=audio["input_features"],
                feature_attention_mask=audio["attention_mask"],
                max_new_tokens=new_tokens,
                do_sample=False,
            )
        return out[:, width:].tolist()

    def answers(self, requests: list[Work], batch: int) -> list[list[int]]:
        answers: list[list[int]] = []
        for start in range(0, len(requests), batch):
            part = requests[start : start + batch]
            out = self.generate(part, max(work.new_tokens for work in part))
            answers += [row[: w.new_tokens] for row, w in zip(out, part, strict=True)]
        return answers


class Ours:
    """qa_jax, from empty caches."""

    def __init__(self, model: qa_jax.LoadedModel) -> None:
        self.config, self.engine = model.config, model.engine

    def request(self, work: Work, extra: list[int] | None = None) -> Request:
        ids = np.concatenate([work.ids, extra or []]).astype(np.int32)
        sampling = SamplingConfig(max_new_tokens=work.new_tokens)
        return Request(ids, [work.clip], sampling, self.config)

    def answers(self, requests: list[Work]) -> list[list[int]]:
        self.engine.forget()
        ours = [self.request(work) for work in requests]
        found = {id(answer.request): answer.tokens for answer in self.engine.run(ours)}
        return [found[id(request)] for request in ours]

    def turns(self, work: Work) -> tuple[float, float]:
        """Seconds to the first tokens of a first turn and a second, on the same clip."""
        self.engine.forget()
        seconds, tokens = self._first_token(self.request(work))
        question = np.random.default_rng(2).integers(0, 30_000, 20).tolist()
        return seconds, self._first_token(self.request(work, [*tokens, *question]))[0]

    def _first_token(self, request: Request) -> tuple[float, list[int]]:
        answer = self.engine.submit(request)
        self.engine.finish([answer])
        return answer.first_token - answer.submitted, answer.tokens


def measure(runs: int) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        peer = Peer(reference(Path(directory)))
        ours = Ours(qa_jax.load(directory, num_slots=BATCH))
    requests = make_requests()
    longest = max(requests, key=lambda work: work.clip.num_frames)
    calls: dict[str, Callable[[], object]] = {
        "turn": lambda: peer.answers(requests, 1),
        "batches of 8": lambda: peer.answers(requests, BATCH),
        "ours": lambda: ours.answers(requests),
        "first token": lambda: peer.generate([longest], 1),
        "turns": lambda: ours.turns(longest),
    }
    ours.engine.warm_up()
    expected, mine = calls["turn"](), calls["ours"]()
    calls["turns"]()
    same = sum(a == b for a, b in zip(expected, mine, strict=True))  # type: ignore[call-overload]
    compilations = num_compilations()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    first, second = [], []
    for _ in range(runs):
        for name, call in calls.items():
            started = time.perf_counter()
            result = call()
            seconds[name].append(time.perf_counter() - started)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
            if name == "turns":
                first.append(result[0])  # type: ignore[index]
                second.append(result[1])  # type: ignore[index]
    assert num_compilations() == compilations, "the engine compiled during the measurement"
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    turns = float(np.median(first)), float(np.median(second))
    return table(median, turns, sum(work.new_tokens for work in requests), same)


def table(
    median: dict[str, float], turns: tuple[float, float], num_tokens: int, same: int
) -> list[str]:
    our_seconds = median["ours"]
    rows = [
        (f"{NUM_REQUESTS} requests, transformers in {how}", median[how], our_seconds)
        for how in ("turn", "batches of 8")
    ]
    rows.append(("first token, longest clip", median["first token"], turns[0]))
    best = min(median["turn"], median["batches of 8"])
    return [
        f"{same} of {NUM_REQUESTS} answers are equal.",
        machine(),
        "",
        "| work | transformers | qa_jax | ratio |",
        "|---|---|---|---|",
        *(f"| {name} | {a:.2f} s | {b:.2f} s | {a / b:.1f}x |" for name, a, b in rows),
        f"| new tokens a second, all requests | {num_tokens / best:.0f} | "
        f"{num_tokens / our_seconds:.0f} | {best / our_seconds:.1f}x |",
        f"| first token of a second turn on that clip | | {turns[1]:.2f} s | "
        f"{turns[1] / turns[0]:.0%} of the first turn's |",
    ]


if __name__ == "__main__":
    replace_section("generation", measure(parse_runs(__doc__)))
