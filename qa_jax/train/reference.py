"""The reference policy of objectives that need one.

Precomputed log-probabilities are kept in OUTPUT_DIR/reference.jsonl, a line for each record, and
are read again when a run resumes. They are computed with the initial parameters, so that no second
model is in memory beside the policy.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import track

from qa_jax import checkpoint
from qa_jax.config import JsonDict
from qa_jax.data import Record, TrainBatch, TrainDataset
from qa_jax.errors import InputError
from qa_jax.model import bind, param_specs
from qa_jax.parallel import is_main_process, local_batch_shards
from qa_jax.train.objectives import completion_log_probs
from qa_jax.train.run import TrainingRun
from qa_jax.train.sharding import shard_batch
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import Params

FILE = "reference.jsonl"


def load_reference(run: TrainingRun, params: Params, console: Console) -> Params | None:
    """The reference's parameters, if the objective keeps them in memory.

    With a precomputed reference, puts its log-probabilities into the run's data instead.
    """
    if run.objective.reference == "precomputed":
        attach_reference_log_probs(run, params, console)
    if run.objective.reference != "in_memory":
        return None
    # The reference is computed in this dtype in any case.
    dtype = jnp.dtype(run.model_config.dtype)
    return checkpoint.load_weights(run.config.train.init_from, run.mesh, dtype)[1]


def attach_reference_log_probs(run: TrainingRun, params: Params, console: Console) -> None:
    """Sets `reference_log_probs` of a run's data: from the file, or computed now.

    Args:
        run: the run whose `data` and `eval_data` are changed.
        params: the initial ones, unless the file exists.
        console: for the progress bar.

    Raises:
        InputError: if the run has begun and the file is missing, or lacks a record.
    """
    path = Path(run.config.train.output_dir) / FILE
    datasets = [data for data in (run.data, run.eval_data) if data is not None]
    if not path.is_file():
        steps = path.parent / "checkpoints"
        if steps.is_dir() and any(p.name.isdigit() for p in steps.iterdir()):
            raise InputError(path, "is missing, though the run has begun", "start it anew")
        base_paths = param_specs(run.models.base)
        flat = flatten_dict(params)
        base_params = unflatten_dict({p: x for p, x in flat.items() if p in base_paths})
        lines: list[str] = []
        for data in datasets:
            lines += _compute(run, data, base_params, console)
        if is_main_process():
            partial = path.with_suffix(".partial")
            partial.write_text("".join(lines))
            partial.replace(path)
    else:
        lines = path.read_text().splitlines()
    rows: dict[str, JsonDict] = {row["record"]: row for row in map(json.loads, lines)}
    for data in datasets:
        found = []
        for example in data.examples:
            row = rows.get(_record_key(example.record))
            if row is None:
                raise InputError(path, f"lacks {example.record.source}", "start the run anew")
            found.append(row["log_probs"])
        data.reference_log_probs = np.array(found, np.float32)


def _record_key(record: Record) -> str:
    """A record's source and a checksum of its content."""
    return f"{record.source} {zlib.crc32(json.dumps(record.raw).encode()):08x}"


def _compute(run: TrainingRun, data: TrainDataset, params: Params, console: Console) -> list[str]:
    """Lines of the file, for every record of a dataset."""
    base, num_shards, n = bind(run.models.base), data.num_batch_shards, data.num_completions

    def row_log_probs(params: Params, batch: TrainBatch) -> jax.Array:
        """(accum, shards, completions, rows) log-probabilities."""

        def micro(one: TrainBatch) -> jax.Array:
            log_probs, _, _ = completion_log_probs(base(params), one, num_shards, n)
            return jnp.sum(log_probs, axis=1).reshape(num_shards, n, -1)

        return jax.lax.map(micro, batch)

    replicated = NamedSharding(run.mesh, PartitionSpec())
    compiled = jax.jit(row_log_probs, out_shardings=replicated)
    local = local_batch_shards(run.mesh)
    lines = []
    steps = range(data.steps_per_epoch)
    for step in track(steps, "reference", console=console, disable=not is_main_process()):
        batch = shard_batch(data.batch(step, local), run.mesh)
        found = np.asarray(compiled(params, batch))
        by_record = np.moveaxis(found, 2, -1).reshape(-1, n)
        # Rows that pad the last batch of an epoch come after the others.
        for index, log_probs in zip(data.example_indices(step), by_record, strict=False):
            key = _record_key(data.examples[index].record)
            row = {"record": key, "log_probs": [float(x) for x in log_probs]}
            lines.append(json.dumps(row) + "\n")
    return lines
