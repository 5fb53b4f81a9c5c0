"""qa_jax against transformers on this machine's CPU: run by `make bench`.

Both get the same random weights (float32) and inputs, their outputs are compared, and their runs
are interleaved, so that a change of the machine's speed affects both. Medians are written to
benchmarks/RESULTS.md between its markers.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
import transformers
from common import cpu_name, replace_section

import qa_jax
from qa_jax.config import num_audio_tokens, num_frames, preset, to_hf
from qa_jax.model import LogMel

BATCH, TEXT_TOKENS, NEW_TOKENS = 2, 64, 64


def reference(directory: Path, name: str = "bench") -> torch.nn.Module:
    """transformers' model of a preset with random weights, saved for qa_jax to load."""
    raw = to_hf(preset(name))
    config = transformers.Qwen2AudioConfig(
        audio_config=raw["audio_config"],
        text_config=raw["text_config"],
        audio_token_index=raw["audio_token_index"],
    )
    torch.manual_seed(0)
    model = transformers.Qwen2AudioForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "positions" not in name:
            parameter.data.normal_(0, parameter[0].numel() ** -0.5)
    model.generation_config.eos_token_id = None
    model.save_pretrained(directory)
    return model


def median_seconds(
    a: Callable[[], object], b: Callable[[], object], runs: int, warm: bool = False
) -> tuple[float, ...]:
    """Medians of two interleaved calls, after one warm-up call of each; with `warm`, each run has a
    warm-up call of its own."""
    a(), b()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for call, seconds in zip((a, b), times, strict=True):
            if warm:
                call()
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def inputs(seconds: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    frames = num_frames(int(seconds * 16_000))
    placeholder = preset("bench").audio_token_id
    text = rng.integers(0, 30_000, (BATCH, TEXT_TOKENS))
    audio = np.full((BATCH, num_audio_tokens(frames)), placeholder)
    ids = np.concatenate([text[:, :8], audio, text[:, 8:]], axis=1)
    mask = np.zeros((BATCH, 3000), np.int64)
    mask[:, :frames] = 1
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "input_features": rng.standard_normal((BATCH, 128, 3000)).astype(np.float32),
        "feature_attention_mask": mask,
    }


def measure(runs: int) -> list[str]:
    with tempfile.TemporaryDirectory() as directory:
        oracle = reference(Path(directory))
        model = qa_jax.load(directory)
    lines = []
    for seconds in (5, 30):
        batch = inputs(seconds)
        tensors = {k: torch.tensor(v) for k, v in batch.items()}
        with torch.no_grad():
            expected = oracle(**tensors).logits.numpy()
        error = np.abs(model.logits(batch) - expected).max() / np.abs(expected).max()
        assert error < 1e-4, f"logits differ by {error}"

        def forward() -> object:
            with torch.no_grad():
                return oracle(**tensors).logits  # noqa: B023

        def answer() -> object:
            with torch.no_grad():
                return oracle.generate(**tensors, max_new_tokens=NEW_TOKENS, do_sample=False)  # noqa: B023

        def qa_jax_answer() -> list[list[int]]:
            return model.generate(batch, max_new_tokens=NEW_TOKENS, temperature=0.0)  # noqa: B023

        width = batch["input_ids"].shape[1]
        assert answer()[:, width:].tolist() == qa_jax_answer(), "answers differ"
        for name, a, b in (
            ("forward, logits of every token", forward, lambda: model.logits(batch)),  # noqa: B023
            (f"greedy answer of {NEW_TOKENS} tokens", answer, qa_jax_answer),
        ):
            lines.append(row(name, seconds, *median_seconds(a, b, runs), f"{error:.0e}"))

        extractor = transformers.WhisperFeatureExtractor(feature_size=128)
        rng = np.random.default_rng(1)
        waveforms = rng.standard_normal((BATCH, seconds * 16_000)).astype(np.float32) * 0.1
        log_mel = jax.jit(LogMel(128))
        expected = extractor(list(waveforms), sampling_rate=16_000)["input_features"]
        mine = np.asarray(log_mel(waveforms))
        error = np.abs(mine - np.swapaxes(expected, 1, 2)[:, : mine.shape[1]]).max()
        # transformers computes in float32 here, up to 7e-5 off float64.
        assert error < 1e-4, f"log-mels differ by {error}"
        times = median_seconds(
            lambda: extractor(list(waveforms), sampling_rate=16_000, return_tensors="np"),  # noqa: B023
            lambda: jax.block_until_ready(log_mel(waveforms)),  # noqa: B023
            4 * runs,
        )
        lines.append(row("log-mel, 128 bins", seconds, *times, f"{error:.0e}"))
    return lines


def machine() -> str:
    """The date, the machine and the versions."""
    return (
        f"{datetime.date.today()}, {cpu_name()}, {torch.get_num_threads()} cores, Python "
        f"{platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}."
    )


def heading(work: str, last: str = "difference") -> list[str]:
    """The measured work, the machine, and the table's header."""
    return [
        f"Batch of {BATCH} clips with {TEXT_TOKENS} text tokens each{work}",
        machine(),
        "",
        f"| work | clip | transformers | qa_jax | ratio | {last} |",
        "|---|---|---|---|---|---|",
    ]


def parse_runs(description: str | None) -> int:
    """The command line's --runs; torch uses as many cores as JAX."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=7)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return parser.parse_args().runs


def row(name: str, seconds: int, oracle: float, qa_jax: float, error: str) -> str:
    text = (
        f"| {name} | {seconds} s | {oracle * 1e3:,.0f} ms | {qa_jax * 1e3:,.0f} ms "
        f"| {oracle / qa_jax:.1f}x | {error} |"
    )
    print(text, flush=True)
    return text


def main() -> None:
    runs = parse_runs(__doc__)
    lines = heading(f"; float32; medians of {runs} interleaved runs.")
    replace_section("against_transformers", lines + measure(runs))


if __name__ == "__main__":
    main()
