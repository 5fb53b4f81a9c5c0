"""Everything of a manifest read once, before a run depends on it: `qa-jax data check`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qa_jax.config import FRAME_MARGIN, MAX_FRAMES, SAMPLE_RATE, valid_frames
from qa_jax.data.audio import load_audio
from qa_jax.data.manifest import Record, read_manifest
from qa_jax.data.processor import Processor
from qa_jax.errors import InputError


class Findings(NamedTuple):
    """What a manifest holds.

    Attributes:
        problems: of every unusable record, "file:line: cause; remedy", in the manifest's order.
        seconds: length of every clip of the usable ones.
        frames: of each usable record's longest clip, 0 without clips.
        tokens: of each usable record, where a tokenizer was given.
    """

    problems: list[str]
    seconds: np.ndarray
    frames: np.ndarray
    tokens: np.ndarray


def check_manifest(
    path: str | Path,
    processor: Processor | None = None,
    *,
    max_tokens: int = 2048,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Findings:
    """Reads every record and decodes every clip of a manifest.

    Args:
        path: the manifest.
        processor: counts tokens; without one, rows over `max_tokens` cannot be found.
        max_tokens: as `data.max_tokens`.
        threads: that decode at once.
        progress: told (records done, records in all).
    """
    broken: dict[str, str] = {}

    def tolerate(error: InputError, source: str) -> None:
        broken[source] = str(error.within(source))

    try:
        records = read_manifest(path, tolerate)
    except InputError:
        if not broken:
            raise
        records = []
    usable: list[tuple[list[int], int]] = []
    with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a clip's decoder may warn of what is told here anyway
        checked = pool.map(lambda r: _check(r, processor, max_tokens), records)
        for done, (record, found) in enumerate(zip(records, checked, strict=True), start=1):
            if isinstance(found, InputError):
                tolerate(found, record.source)
            else:
                usable.append(found)
            if progress:
                progress(done, len(records))
    order = sorted(broken, key=lambda source: int(source.rpartition(":")[2]))
    return Findings(
        problems=[broken[source] for source in order],
        seconds=np.array([n / SAMPLE_RATE for samples, _ in usable for n in samples]),
        frames=np.array([valid_frames(max(samples, default=0)) for samples, _ in usable], int),
        tokens=np.array([tokens for _, tokens in usable if tokens], int),
    )


def _check(
    record: Record, processor: Processor | None, max_tokens: int
) -> tuple[list[int], int] | InputError:
    """Samples of its clips and its tokens, or what is wrong with it."""
    try:
        samples = [load_audio(clip, base=record.base).size for clip in record.prompt.audio]
        if processor is None:
            return samples, 0
        return samples, processor.count(record.versions(), samples, max_tokens)
    except InputError as error:
        return error


def summary(findings: Findings) -> list[str]:
    """Lengths, and buckets that suit them, as lines of text."""
    usable = len(findings.frames)
    lines = [f"{usable:,} usable records, {len(findings.problems):,} unusable"]
    if findings.seconds.size:
        quantiles = np.quantile(findings.seconds, (0, 0.5, 0.9, 0.99, 1))
        lines.append(
            f"{findings.seconds.size:,} clips, {findings.seconds.sum() / 3600:.2f} hours; seconds: "
            + _quantiles(quantiles, "{:.1f}")
        )
        buckets = sorted({_bucket(q) for q in np.quantile(findings.frames, (0.3, 0.7, 1.0))})
        lines.append(f"data.buckets that suit them: frames {', '.join(map(str, buckets))}")
    if findings.tokens.size:
        quantiles = np.quantile(findings.tokens, (0, 0.5, 0.9, 0.99, 1))
        lines.append("tokens: " + _quantiles(quantiles, "{:.0f}"))
    return lines


def _bucket(frames: float) -> int:
    return min(-(-int(frames + FRAME_MARGIN) // 4) * 4, MAX_FRAMES)


def _quantiles(values: np.ndarray, form: str) -> str:
    names = ("shortest", "half", "90 %", "99 %", "longest")
    return ", ".join(f"{n} {form.format(v)}" for n, v in zip(names, values, strict=True))
