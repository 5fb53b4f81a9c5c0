"""Scores as a table in the terminal, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qa_jax.config import JsonDict
from qa_jax.evaluate.metrics import Interval
from qa_jax.evaluate.score import Difference, Scored


def print_table(scored: Scored, run: JsonDict) -> None:
    """Prints each subset's metrics with their intervals, beside the first number that others
    reported."""
    table = Table(title=scored.title or None, title_justify="left")
    for name in ("subset", "metric", "score", "95 %", "rows", "errors", "reported"):
        is_text = name in ("subset", "metric")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    who = ""
    for own in scored.scores:
        table.add_row(
            own.subset,
            own.title,
            f"{own.value.value:.2f}" if own.is_known else "",
            interval_text(own.value),
            str(own.num_rows),
            str(own.num_errors or ""),
            next((f"{value:g}" for value in own.reported.values()), ""),
        )
        who = next(iter(own.reported), who)
    table.caption, table.caption_justify = f"reported: {who}" if who else None, "left"
    console = Console()
    console.print(table)
    if "rtfx" in run:
        console.print(
            f"{run['audio_seconds'] / 3600:.2f} h of audio in {run['answer_seconds']:.0f} s: "
            f"{run['rtfx']:.1f} times real time on {run['device']}",
            highlight=False,
        )
    if scored.notes:
        console.print(scored.notes, highlight=False)


def interval_text(value: Interval) -> str:
    """An interval as it is printed; empty for none."""
    return "" if math.isnan(value.low) else f"{value.low:.2f} to {value.high:.2f}"


def print_differences(differences: Sequence[Difference]) -> None:
    """Prints the second model's metrics less the first's."""
    table = Table(title="Difference: the compared answers less the first", title_justify="left")
    for name in ("subset", "metric", "difference", "95 % interval", "p", "rows of both"):
        table.add_column(name, justify="left" if name in ("subset", "metric") else "right")
    for subset, title, (difference, p_value, num_rows) in differences:
        table.add_row(
            subset,
            title,
            f"{difference.value:+.2f}",
            interval_text(difference),
            f"{p_value:.3f}",
            str(num_rows),
        )
    Console().print(table)


def write_json(path: str, scored: Scored, run: JsonDict) -> None:
    """Writes the scores, with the record of the run."""
    scores = [
        {
            **own._asdict(),
            "value": own.value.value if own.is_known else None,
            "interval": None if math.isnan(own.value.low) else [own.value.low, own.value.high],
        }
        for own in scored.scores
    ]
    content = {"benchmark": scored.title, "scores": scores, "run": run, "notes": scored.notes}
    Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
