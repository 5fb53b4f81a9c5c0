"""The engine against transformers on this machine's CPU.

64 requests with clips of 1 to 30 s and 8 to 64 new tokens: transformers answers them one at a time
and in batches of 8, the engine through 8 slots. Both have the same random weights (float32), and
answer the same tokens. Also the time to the first token of one request, and of a second turn on the
same clip. Results go between the markers of benchmarks/RESULTS.md.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import torch
from against_transformers import parse_runs, reference
from common import cpu_name, replace_section

import qa_jax
from qa_jax.config import SamplingConfig, num_audio_tokens, num_frames, preset
from qa_jax.generate import Clip, Request
from qa_jax.model import LogMel

NUM_REQUESTS, BATCH = 64, 8


def make_requests() -> list[dict[str, np.ndarray]]:
    """transformers' inputs, each with its number of new tokens; log-mels are computed before."""
    rng, log_mel = np.random.default_rng(0), LogMel(128)
    placeholder, requests = preset("bench").audio_token_id, []
    for _ in range(NUM_REQUESTS):
        samples = rng.standard_normal((1, int(rng.uniform(1, 30) * 16_000))) * 0.1
        frames = num_frames(samples.shape[1])
        padded = np.zeros((1, 480_000), np.float32)
        padded[:, : samples.shape[1]] = samples
        text = rng.integers(0, 30_000, int(rng.integers(10, 60)))
        audio = np.full(num_audio_tokens(frames), placeholder)
        mask = np.zeros((1, 3000), np.int64)
        mask[:, :frames] = 1
        requests.append(
            {
                "input_ids": np.concatenate([text[:8], audio, text[8:]])[None],
                "input_features": np.swapaxes(np.asarray(log_mel(padded)), 1, 2),
                "feature_attention_mask": mask,
                "new_tokens": np.array(rng.integers(8, 65)),
            }
        )
    return requests


def collate(requests: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Left-padded, as transformers' processor does."""
    width = max(r["input_ids"].shape[1] for r in requests)
    ids = np.zeros((len(requests), width), np.int64)
    mask = np.zeros_like(ids)
    for row, valid, request in zip(ids, mask, requests, strict=True):
        n = request["input_ids"].shape[1]
        row[width - n :], valid[width - n :] = request["input_ids"][0], 1
    names = ("input_features", "feature_attention_mask")
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        **{n: torch.tensor(np.concatenate([r[n] for r in requests])) for n in names},
    }


def oracle_answers(
    oracle: torch.nn.Module, requests: list[dict[str, np.ndarray]], batch: int
) -> list[list[int]]:
    answers = []
    for start in range(0, len(requests), batch):
        part = requests[start : start + batch]
        inputs, counts = collate(part), [int(r["new_tokens"]) for r in part]
        with torch.no_grad():
            out = oracle.generate(**inputs, max_new_tokens=max(counts), do_sample=False)
        width = inputs["input_ids"].shape[1]
        answers += [row[width : width + n].tolist() for row, n in zip(out, counts, strict=True)]
    return answers


def to_request(raw: dict[str, np.ndarray], model: qa_jax.LoadedModel) -> Request:
    frames = int(raw["feature_attention_mask"].sum())
    clip = Clip(raw["input_features"][0, :, : frames + 4].T.copy(), frames)
    sampling = SamplingConfig(max_new_tokens=int(raw["new_tokens"]))
    return Request(raw["input_ids"][0], [clip], sampling, model.config)


def seconds_to_first_token(model: qa_jax.LoadedModel, request: Request) -> tuple[float, list[int]]:
    started = time.perf_counter()
    answer = model.engine.submit(request)
    while not answer.tokens:
        model.engine.step()
    seconds = answer.first_token - started
    model.engine.finish([answer])
    return seconds, answer.tokens


def turns(model: qa_jax.LoadedModel, raw: dict[str, np.ndarray]) -> tuple[float, float]:
    """Seconds to the first token of a first turn on a clip of 30 s, and of the second."""
    first = to_request(raw, model)
    model.engine.forget()
    model.engine.audio_cache.clear()
    seconds, tokens = seconds_to_first_token(model, first)
    question = np.random.default_rng(2).integers(0, 30_000, 20)
    ids = np.concatenate([first.tokens, tokens, question])
    second = Request(ids, first.clips, first.sampling, model.config)
    return seconds, seconds_to_first_token(model, second)[0]


def main() -> None:
    runs = parse_runs(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        oracle = reference(Path(directory))
        model = qa_jax.load(directory, num_slots=BATCH)
    requests = make_requests()
    longest = max(requests, key=lambda r: r["feature_attention_mask"].sum())
    new_tokens = sum(int(r["new_tokens"]) for r in requests)

    def engine_answers() -> list[list[int]]:
        model.engine.forget()
        model.engine.audio_cache.clear()
        ours = [to_request(raw, model) for raw in requests]
        found = {id(a.request): a.tokens for a in model.engine.run(iter(ours))}
        return [found[id(request)] for request in ours]

    def oracle_first_token() -> None:
        with torch.no_grad():
            oracle.generate(**collate([longest]), max_new_tokens=1, do_sample=False)

    engine_answers(), turns(model, longest)  # compiles
    times: dict[str, list[float]] = {}
    for _ in range(runs):
        for name, call in (
            ("one at a time", lambda: oracle_answers(oracle, requests, 1)),
            ("batches of 8", lambda: oracle_answers(oracle, requests, BATCH)),
            ("qa_jax", engine_answers),
            ("first token", oracle_first_token),
        ):
            started = time.perf_counter()
            answers = call()
            times.setdefault(name, []).append(time.perf_counter() - started)
            print(name, f"{times[name][-1]:.2f} s", flush=True)
            if name == "one at a time":
                expected = answers
            elif name == "qa_jax":
                same = sum(a == b for a, b in zip(answers, expected, strict=True))
                assert same == NUM_REQUESTS, f"{same} answers are equal"
        first, second = turns(model, longest)
        times.setdefault("first turn", []).append(first)
        times.setdefault("second turn", []).append(second)
    write_results(times, runs, new_tokens)


def write_results(times: dict[str, list[float]], runs: int, new_tokens: int) -> None:
    median = {name: float(np.median(x)) for name, x in times.items()}
    peer, ours = min(median["one at a time"], median["batches of 8"]), median["qa_jax"]
    replace_section(
        "generation",
        [
            f"Medians of {runs} interleaved runs on {cpu_name()}; `bench` preset, float32, greedy, "
            f"all {NUM_REQUESTS} answers equal.",
            "",
            "| work | transformers | qa_jax | ratio |",
            "|---|---|---|---|",
            *(
                f"| 64 mixed requests, {name} | {median[name]:.1f} s | {ours:.1f} s | "
                f"{median[name] / ours:.1f}x |"
                for name in ("one at a time", "batches of 8")
            ),
            f"| new tokens a second, all requests | {new_tokens / peer:.0f} | "
            f"{new_tokens / ours:.0f} | {peer / ours:.1f}x |",
            f"| first token, a clip of 30 s | {median['first token'] * 1e3:.0f} ms | "
            f"{median['first turn'] * 1e3:.0f} ms | "
            f"{median['first token'] / median['first turn']:.1f}x |",
            f"| first token of the second turn | | {median['second turn'] * 1e3:.0f} ms | "
            f"{median['second turn'] / median['first turn']:.0%} of the first turn's |",
        ],
    )


if __name__ == "__main__":
    main()
