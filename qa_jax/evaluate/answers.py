"""Answers a benchmark's questions into a file, and says how fast that went."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from qa_jax.api import LoadedModel
from qa_jax.config import JsonDict
from qa_jax.data.questions import Question
from qa_jax.generate import Summary
from qa_jax.paths import write_whole
from qa_jax.terminal import Progress

GREEDY: JsonDict = {"temperature": 0.0, "repetition_penalty": 1.0}
"""How the authors evaluate."""
_SECONDS_BETWEEN_WRITES = 10.0


def answer(
    model: LoadedModel,
    questions: Sequence[Question],
    output: str | Path,
    *,
    window_seconds: float | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Summary:
    """Writes a row for each question, see `qa_jax.generate.answer_questions`, and beside it
    OUTPUT.run.json: settings, versions, device, and the seconds that it took, interruptions
    included.

    Decoding is greedy with a repetition penalty of 1 by default, as in the authors' evaluation.

    Args:
        model: the model, with its tokenizer.
        questions: what is asked.
        output: the file; what is there already from the same model and settings is not asked again.
        window_seconds: splits clips over 30 s, where a question has one.
        progress: called with (rows done, rows in all).
        settings: fields of `SamplingConfig`.
    """
    settings = {**GREEDY, **settings}
    record = _record_path(output)
    so_far = json.loads(record.read_text())["answer_seconds"] if record.exists() else 0.0
    if not Path(output).exists():
        so_far = 0.0
    started = time.perf_counter()
    written = float("-inf")

    def tell(done: int, total: int, always: bool = False) -> None:
        nonlocal written
        seconds = time.perf_counter() - started
        if always or seconds - written > _SECONDS_BETWEEN_WRITES:
            written = seconds
            write_whole(record, json.dumps(_run(model, settings, so_far + seconds), indent=1))
        if progress is not None and not always:
            progress(done, total)

    summary = model.answer_questions(
        questions,
        output,
        field="prediction",
        window_seconds=window_seconds,
        progress=tell,
        **settings,
    )
    tell(0, 0, always=True)
    return summary


def _record_path(output: str | Path) -> Path:
    return Path(f"{output}.run.json")


def _run(model: LoadedModel, settings: JsonDict, seconds: float) -> JsonDict:
    device = jax.devices()[0]
    return {
        "model": model.fingerprint,
        "dtype": model.config.dtype,
        "settings": settings,
        "num_slots": model.engine.num_slots,
        "versions": {name: version(name) for name in ("qa_jax", "jax", "flax")},
        "device": f"{jax.device_count()} x {device.device_kind}",
        "answer_seconds": round(seconds, 3),
    }


def read_run(outputs: Sequence[str | Path], rows: Sequence[JsonDict]) -> JsonDict:
    """How the rows of some files of answers were made: seconds of clips and of answering, and their
    ratio, the inverse real-time factor (RTFx); of parts that were answered side by side, the
    longest."""
    runs = [json.loads(p.read_text()) for p in map(_record_path, outputs) if p.exists()]
    audio = sum(row.get("seconds", 0.0) for row in rows)
    found: JsonDict = {"audio_seconds": round(audio, 3)}
    if len(runs) == len(outputs):
        seconds = max(run["answer_seconds"] for run in runs)
        found |= {**runs[0], "answer_seconds": seconds}
        if seconds:
            found["rtfx"] = audio / seconds
    return found
