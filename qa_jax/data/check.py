"""`qa-jax data check`: reads every record and clip of a manifest once, before a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qa_jax.config import FRAME_MARGIN, MAX_FRAMES, SAMPLE_RATE, num_audio_tokens, num_frames
from qa_jax.data.audio import load_audio
from qa_jax.data.examples import too_long
from qa_jax.data.manifest import Record, read_manifest
from qa_jax.data.processor import Processor
from qa_jax.errors import InputError
from qa_jax.typing import Float, Int


class ManifestReport(NamedTuple):
    """The contents of a manifest.

    Attributes:
        problems: "file:line: cause; remedy" for every unusable record, in the manifest's order.
        seconds: length of every clip of the usable records.
        num_frames: frames of each usable record's longest clip, 0 without clips.
        num_tokens: tokens of each usable record, if a tokenizer was given.
    """

    problems: list[str]
    seconds: Float[np.ndarray, " clips"]
    num_frames: Int[np.ndarray, " records"]
    num_tokens: Int[np.ndarray, " records"]


def check_manifest(
    path: str | Path,
    processor: Processor | None = None,
    *,
    max_tokens: int = 2048,
    num_threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> ManifestReport:
    """Reads every record and decodes every clip of a manifest.

    Args:
        path: the manifest.
        processor: counts tokens; without one, records over `max_tokens` are not found.
        max_tokens: as `data.max_tokens`.
        num_threads: threads that decode audio.
        progress: called with (records done, records in all).
    """
    problems: dict[str, str] = {}

    def on_error(error: InputError, source: str) -> None:
        problems[source] = str(error.within(source))

    try:
        records = read_manifest(path, on_error)
    except InputError:
        if not problems:
            raise
        records = []
    usable: list[tuple[list[int], int]] = []
    with ThreadPoolExecutor(num_threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn of what is reported here anyway
        checked = pool.map(lambda r: _check(r, processor, max_tokens), records)
        for done, (record, found) in enumerate(zip(records, checked, strict=True), start=1):
            if isinstance(found, InputError):
                on_error(found, record.source)
            else:
                usable.append(found)
            if progress:
                progress(done, len(records))
    order = sorted(problems, key=lambda source: int(source.rpartition(":")[2]))
    return ManifestReport(
        problems=[problems[source] for source in order],
        seconds=np.array([n / SAMPLE_RATE for samples, _ in usable for n in samples]),
        num_frames=np.array([num_frames(max(samples, default=0)) for samples, _ in usable], int),
        num_tokens=np.array([tokens for _, tokens in usable if tokens], int),
    )


def _check(
    record: Record, processor: Processor | None, max_tokens: int
) -> tuple[list[int], int] | InputError:
    """Samples of each clip and the number of tokens, or the record's error."""
    try:
        samples = [load_audio(clip, base=record.base).size for clip in record.prompt.audio]
        if processor is None:
            return samples, 0
        text_tokens = processor.count_text_tokens(record.completions(), samples)
        tokens = text_tokens + sum(num_audio_tokens(num_frames(n)) for n in samples)
        if tokens > max_tokens:
            raise InputError("record", *too_long(tokens, max_tokens))
        return samples, tokens
    except InputError as error:
        return error


def summary(report: ManifestReport) -> list[str]:
    """Lengths, and suggested buckets, as lines of text."""
    usable = len(report.num_frames)
    lines = [f"{usable:,} usable records, {len(report.problems):,} unusable"]
    if report.seconds.size:
        quantiles = np.quantile(report.seconds, (0, 0.5, 0.9, 0.99, 1))
        lines.append(
            f"{report.seconds.size:,} clips, {report.seconds.sum() / 3600:.2f} hours; seconds: "
            + _quantiles(quantiles, "{:.1f}")
        )
        buckets = sorted({_bucket(q) for q in np.quantile(report.num_frames, (0.3, 0.7, 1.0))})
        lines.append(f"suggested data.buckets: frames {', '.join(map(str, buckets))}")
    if report.num_tokens.size:
        quantiles = np.quantile(report.num_tokens, (0, 0.5, 0.9, 0.99, 1))
        lines.append("tokens: " + _quantiles(quantiles, "{:.0f}"))
    return lines


def _bucket(num_frames: float) -> int:
    return min(-(-int(num_frames + FRAME_MARGIN) // 4) * 4, MAX_FRAMES)


def _quantiles(values: np.ndarray, template: str) -> str:
    names = ("min", "median", "90 %", "99 %", "max")
    return ", ".join(f"{n} {template.format(v)}" for n, v in zip(names, values, strict=True))
