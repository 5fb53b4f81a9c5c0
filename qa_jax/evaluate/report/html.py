"""One self-contained page: scores, groups, and every answer with its errors and its clip."""

from __future__ import annotations

import base64
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np

from qa_jax.config import SAMPLE_RATE, JsonDict
from qa_jax.data.audio import AudioSource, load_audio
from qa_jax.errors import InputError
from qa_jax.evaluate.benchmarks import load_benchmark
from qa_jax.evaluate.layouts import read_items
from qa_jax.evaluate.metrics import Metric, find_metric, interval
from qa_jax.evaluate.metrics.error_rate import ERROR_RATES, align
from qa_jax.evaluate.normalizers import find_normalizer
from qa_jax.evaluate.score import Scored, row_key, scaled
from qa_jax.terminal import progress_bar

_LENGTHS = (2, 5, 10, 20, 30)
"""Seconds that separate groups of clips."""
_GROUPED_BY = ("subset", "language", "source", "difficulty", "speaker")
_MAX_GROUPS = 30
_MAX_SECONDS = 600.0
"""A longer clip is not in the page."""


def write_html(
    path: str, scored: Scored, run: JsonDict, num_clips: int = 200, data: str | None = None
) -> None:
    """Writes the page.

    Args:
        path: the file.
        scored: of `score`.
        run: of `read_run`.
        num_clips: how many clips are in the page, those of the worst answers first.
        data: where the benchmark's data is, for clips of the hub.
    """
    rows = [_page_row(scored, row) for row in scored.rows]
    _add_clips(rows, scored.rows, num_clips, data)
    scores = [
        {
            **own._asdict(),
            "value": own.value.value if own.is_known else None,
            "low": None if math.isnan(own.value.low) else own.value.low,
            "high": None if math.isnan(own.value.high) else own.value.high,
        }
        for own in scored.scores
    ]
    content = {
        "title": scored.title or "Answers",
        "notes": scored.notes,
        "run": run,
        "scores": scores,
        "groups": _groups(scored),
        "rows": rows,
    }
    text = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = files("qa_jax.evaluate.report").joinpath("page.html").read_text(encoding="utf-8")
    Path(path).write_text(page.replace("__REPORT__", text), encoding="utf-8")


def _page_row(scored: Scored, row: JsonDict) -> JsonDict:
    """A row with its metric, its alignment, and how bad it is: 0 is right."""
    subset, name = row_key(row)
    found = {
        "id": name,
        "subset": subset,
        "prompt": row.get("prompt", ""),
        "reference": row.get("reference", ""),
        "seconds": row.get("seconds"),
        "speaker": row.get("speaker", ""),
    }
    if "error" in row:
        return {**found, "error": row["error"], "badness": 1e9}
    found["prediction"] = row["prediction"]
    metric_name, metric = _first_metric(scored, row)
    if metric is None:
        return {**found, "badness": 0.0}
    value = metric.of([row])
    if not math.isfinite(value):
        return {**found, "value": None, "badness": 1e6 if value > 0 else 1e3}
    found["value"] = 100 * value if metric.is_percent else value
    found["badness"] = -value if metric.higher_is_better else value
    if metric_name in ERROR_RATES:
        found["edits"] = _edits(scored, row, metric_name)
    if metric.is_percent:
        found["right"] = value == float(metric.higher_is_better)
    return found


def _first_metric(scored: Scored, row: JsonDict) -> tuple[str, Metric | None]:
    subset = str(row.get("subset", "all"))
    for own in scored.scores:
        if own.subset == subset and own.is_known:
            return own.metric, find_metric(own.metric, scored.normalizer)
    return "", None


def _edits(scored: Scored, row: JsonDict, metric: str) -> list[list[str]]:
    """The alignment's stretches: kind, words of the reference, words of the answer."""
    normalize = find_normalizer(scored.normalizer)
    tokenize = ERROR_RATES[metric]
    language = str(row.get("language", ""))
    reference, answer = (
        tokenize(normalize(row[key], language)) for key in ("reference", "prediction")
    )
    edits = align(reference, answer)
    return [[e.kind, " ".join(e.reference), " ".join(e.prediction)] for e in edits]


def _groups(scored: Scored) -> list[JsonDict]:
    """The headline metric by length, source, language and speaker, where there are several."""
    headline = next((own.metric for own in scored.scores if own.is_known), None)
    if headline is None:
        return []
    metric = find_metric(headline, scored.normalizer)
    rows = [
        row
        for row in scored.rows
        if "error" not in row and _first_metric(scored, row)[0] == headline
    ]
    names: dict[str, Mapping[str, list[JsonDict]]] = {}
    if all("seconds" in row for row in rows):
        names["length"] = _by(rows, _length)
    for field in _GROUPED_BY:
        if any(row.get(field) for row in rows):
            names[field] = _by(rows, partial(_value_of, field))
    found = []
    for title, groups in names.items():
        if len(groups) < 2:
            continue
        shown = sorted(groups.items(), key=lambda pair: -len(pair[1]))[:_MAX_GROUPS]
        if title == "length":
            shown = list(groups.items())
        bars = [(name, own, scaled(metric, interval(metric, own))) for name, own in shown]
        if title != "length":
            bars.sort(key=lambda bar: bar[2].value, reverse=not metric.higher_is_better)
        found.append(
            {
                "by": title,
                "metric": metric.title,
                "left_out": len(groups) - len(shown),
                "bars": [
                    {"name": name, "rows": len(own), **_finite(value._asdict())}
                    for name, own, value in bars
                ],
            }
        )
    return found


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _by(rows: Sequence[JsonDict], key: Callable[[JsonDict], str]) -> dict[str, list[JsonDict]]:
    groups: dict[str, list[JsonDict]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.get("seconds", 0.0)):
        groups[key(row)].append(row)
    return groups


def _value_of(field: str, row: JsonDict) -> str:
    return str(row.get(field) or "unknown")


def _length(row: JsonDict) -> str:
    seconds = row["seconds"]
    place = int(np.searchsorted(_LENGTHS, seconds))
    edges = (0, *_LENGTHS)
    return f"{edges[place]} to {edges[place + 1]} s" if place < len(_LENGTHS) else "over 30 s"


def _add_clips(
    rows: list[JsonDict], answers: Sequence[JsonDict], num_clips: int, data: str | None
) -> None:
    """Adds the clips of the worst rows, as MP3."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i]["badness"])[:num_clips]
    sources = _items(answers, data) if data else {}
    with progress_bar("encoding clips") as progress:
        for done, index in enumerate(order, start=1):
            key = row_key(answers[index])
            clips = sources.get(key) or answers[index].get("audio") or []
            found = [_mp3(clip) for clip in clips]
            rows[index]["clips"] = [clip for clip in found if clip]
            progress(done, len(order))


def _items(answers: Sequence[JsonDict], data: str) -> dict[tuple[str, str], list[AudioSource]]:
    first = answers[0]
    benchmark = load_benchmark(str(first.get("benchmark", "")), first.get("table"))
    return {
        (subset, item.id): item.audio
        for subset in {str(row["subset"]) for row in answers}
        for item in read_items(benchmark, subset, data)
    }


def _mp3(clip: AudioSource) -> str:
    """A clip for an <audio> element; empty if it cannot be read, which its row tells."""
    import soundfile

    try:
        waveform = load_audio(clip, long_audio="window", max_seconds=_MAX_SECONDS)
    except InputError:
        return ""
    file = io.BytesIO()
    soundfile.write(file, waveform, SAMPLE_RATE, format="MP3")
    return "data:audio/mpeg;base64," + base64.b64encode(file.getvalue()).decode()
