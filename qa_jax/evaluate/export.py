"""Answers in the form that a benchmark's own script reads, attached to its data's rows by id."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from qa_jax.config import BenchmarkConfig, JsonDict
from qa_jax.errors import InputError
from qa_jax.evaluate.answers import read_run
from qa_jax.evaluate.benchmarks import load_benchmark
from qa_jax.evaluate.layouts import read_items
from qa_jax.evaluate.score import read_answers, row_key


def export(
    answers: Sequence[str], output: str, *, name: str | None = None, data: str | None = None
) -> int:
    """Writes the rows of a benchmark's data with the answers to them; returns how many.

    Args:
        answers: files of answers.
        output: the file; with {subset} in its name, one for each subset.
        name: a recipe; by default the one that the answers name.
        data: where the data is. A form with columns of its own does without.

    Raises:
        InputError: the data lacks an item, or an item has no answer.
    """
    rows = read_answers(answers)
    name = name or str(rows[0].get("benchmark", ""))
    benchmark = load_benchmark(name, rows[0].get("table"))
    by_subset: dict[str, list[JsonDict]] = {}
    for row in rows:
        by_subset.setdefault(str(row.get("subset", "")), []).append(row)
    if benchmark.export.columns:
        rtfx = read_run(answers, rows).get("rtfx")
        found = {s: _renamed(benchmark, own, rtfx) for s, own in by_subset.items()}
    else:
        if data is None:
            raise InputError("--export", "needs the benchmark's rows", "give --data")
        found = {s: _attached(benchmark, s, own, data) for s, own in by_subset.items()}
    if "{subset}" in output:
        for subset, own in found.items():
            _write(Path(output.replace("{subset}", subset)), own, benchmark.export.form)
    else:
        _write(Path(output), [r for own in found.values() for r in own], benchmark.export.form)
    return len(rows)


def _attached(
    benchmark: BenchmarkConfig, subset: str, rows: Sequence[JsonDict], data: str
) -> list[JsonDict]:
    """The data's rows, in their order, with the answers; an error is an empty answer."""
    answer_of = {row_key(row): row.get("prediction", "") for row in rows}
    found = []
    for item in read_items(benchmark, subset, data):
        if (subset, item.id) in answer_of:
            text = answer_of.pop((subset, item.id))
            found.append({**item.raw, benchmark.export.key: text})
    if answer_of:
        missing = next(iter(answer_of))[1]
        raise InputError(data, f"has no item {missing} of {subset}", "check --data")
    return found


def _renamed(
    benchmark: BenchmarkConfig, rows: Sequence[JsonDict], rtfx: float | None
) -> list[JsonDict]:
    """Rows of the recipe's columns. "time" is the clip's share of the run's time, for answers are
    generated side by side."""
    found = []
    for row in rows:
        known = {**row, "time": row.get("seconds", 0.0) / rtfx if rtfx else None}
        own = {theirs: known.get(ours) for theirs, ours in benchmark.export.columns.items()}
        found.append({**own, benchmark.export.key: row.get("prediction", "")})
    return found


def _write(path: Path, rows: Sequence[JsonDict], form: str) -> None:
    lines = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
    text = "[" + ",\n".join(lines) + "]\n" if form == "json" else "".join(f"{x}\n" for x in lines)
    path.write_text(text, encoding="utf-8")
