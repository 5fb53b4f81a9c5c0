"""Log-probabilities of a preference run's reference, computed once and kept in a file.

OUTPUT/reference.jsonl holds a line for every record; a run that was stopped reads them again. They
are computed with the initial parameters, which then need not lie beside the policy.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import track

from qa_jax.data import Record, TrainBatch, TrainData
from qa_jax.errors import InputError
from qa_jax.model import Params, bind, declarations, flatten, nest
from qa_jax.parallel import first_process, local_groups
from qa_jax.train.objectives import answer_log_probs
from qa_jax.train.setup import Run

FILE = "reference.jsonl"


def store_reference(
    run: Run, params: Params, place: Callable[[TrainBatch], TrainBatch], console: Console
) -> None:
    """Gives a run's data the reference's log-probabilities: from its file, or computed now.

    Args:
        run: whose `data` and `eval_data` get them.
        params: the initial ones, unless the file is there.
        place: puts a batch onto the mesh.
        console: where progress is shown.

    Raises:
        InputError: where the run has begun and the file is not there, or does not hold the records.
    """
    path = Path(run.config.train.output) / FILE
    if not path.is_file():
        begun = path.parent / "checkpoints"
        if begun.is_dir() and any(p.name.isdigit() for p in begun.iterdir()):
            raise InputError(path, "is not there, though the run has begun", "start it anew")
        own = declarations(run.models.base)
        plain = nest({p: x for p, x in flatten(params).items() if p in own})
        lines: list[str] = []
        for data in filter(None, (run.data, run.eval_data)):
            lines += _compute(run, data, plain, place, console)
        if first_process():
            partial = path.with_suffix(".partial")
            partial.write_text("".join(lines))
            partial.replace(path)
    else:
        lines = path.read_text().splitlines()
    known: dict[str, Any] = {row["record"]: row for row in map(json.loads, lines)}
    for data in filter(None, (run.data, run.eval_data)):
        found = []
        for example in data.examples:
            row = known.get(_name(example.record))
            if row is None:
                raise InputError(
                    path, f"does not hold {example.record.source}", "start the run anew"
                )
            found.append((row["chosen"], row["rejected"]))
        data.reference = np.array(found, np.float32)


def _name(record: Record) -> str:
    """Where a record is and what it says, so that another manifest of that name is noticed."""
    return f"{record.source} {zlib.crc32(json.dumps(record.raw).encode()):08x}"


def _compute(
    run: Run,
    data: TrainData,
    params: Params,
    place: Callable[[TrainBatch], TrainBatch],
    console: Console,
) -> list[str]:
    bound, groups, local = bind(run.models.base), data.groups, local_groups(run.mesh)

    def of_rows(params: Params, batch: TrainBatch) -> jax.Array:
        """(accumulate, groups, 2, rows) log-probabilities."""

        def micro(one: TrainBatch) -> jax.Array:
            found, _, _ = answer_log_probs(bound(params), one, groups, copies=2)
            return jnp.sum(found, axis=1).reshape(groups, 2, -1)

        return jax.lax.map(micro, batch)

    everywhere = NamedSharding(run.mesh, PartitionSpec())
    compiled = jax.jit(of_rows, out_shardings=everywhere)
    lines = []
    steps = range(data.steps_per_epoch)
    shown = track(steps, "the reference", console=console, disable=not first_process())
    for number in shown:
        found = np.asarray(compiled(params, place(data.batch(number, local))))
        pairs = np.moveaxis(found, 2, -1).reshape(-1, 2)
        # Rows that only fill the last batch of an epoch come after the others.
        for index, (chosen, rejected) in zip(data.members(number), pairs, strict=False):
            name = _name(data.examples[index].record)
            row = {"record": name, "chosen": float(chosen), "rejected": float(rejected)}
            lines.append(json.dumps(row) + "\n")
    return lines
