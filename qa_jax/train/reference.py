"""The reference policy of objectives that need one.

Precomputed log-probabilities are kept in OUTPUT_DIR/reference.jsonl, a line for each record, and
are read again when a run resumes; a file of other parameters or records is computed anew before the
first step, and refused after it. They are computed with the initial parameters, so that no second
model is in memory beside the policy.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import track

from qa_jax import checkpoint
from qa_jax.data import TrainBatch, TrainDataset
from qa_jax.data.examples import Example
from qa_jax.errors import InputError
from qa_jax.model import bind, param_specs
from qa_jax.parallel import agree, is_main_process, local_batch_shards
from qa_jax.paths import AnyPath, as_path, write_whole
from qa_jax.train.objectives import completion_log_probs
from qa_jax.train.run import TrainingRun
from qa_jax.train.sharding import shard_batch
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import Params

FILE = "reference.jsonl"
_PARAMS = "parameters"


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
    return checkpoint.load_weights(run.config.train.init_from, run.mesh, dtype, weights="float")[1]


def attach_reference_log_probs(run: TrainingRun, params: Params, console: Console) -> None:
    """Sets `reference_log_probs` of a run's data: from the file, or computed now.

    Args:
        run: the run whose `data` and `eval_data` are changed.
        params: the initial ones, unless the file exists.
        console: for the progress bar.

    Raises:
        InputError: if the run has begun and the file is missing, or lacks a record.
    """
    path = as_path(run.config.train.output_dir) / FILE
    datasets = [run.data, *run.eval_data.values()]
    has_begun = bool(checkpoint.all_steps(run.config.train.output_dir))
    rows = _read(path)
    if has_begun and not rows:
        raise InputError(path, "is missing, though the run has begun", "start it anew")
    if not has_begun:
        # The parameters are the initial ones: a file of other parameters is stale.
        base_paths = param_specs(run.models.base)
        flat = flatten_dict(params)
        base_params = unflatten_dict({p: x for p, x in flat.items() if p in base_paths})
        digest = fingerprint(base_params)
        wanted = {_record_key(e) for data in datasets for e in data.examples}
        if rows.get(_PARAMS) != digest or not wanted <= rows.keys():
            rows = {_PARAMS: digest}
            for data in datasets:
                rows |= _compute(run, data, base_params, console)
            if is_main_process():
                write_whole(path, "".join(json.dumps([k, v]) + "\n" for k, v in rows.items()))
    for data in datasets:
        found = []
        for example in data.examples:
            log_probs = rows.get(_record_key(example))
            if log_probs is None:
                raise InputError(path, f"lacks {example.record.source}", "start the run anew")
            found.append(log_probs)
        data.reference_log_probs = np.array(found, np.float32)


def _read(path: AnyPath) -> dict[str, Any]:
    """The file's rows by key; none for a file that is missing, incomplete or of another form."""
    if not path.exists():
        return {}
    try:
        return {key: value for key, value in map(json.loads, path.read_text().splitlines())}
    except (ValueError, TypeError):
        return {}


def fingerprint(params: Params) -> str:
    """A digest of all parameters' bits, computed where they are."""

    def weighted_sum(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
        # Odd weights, so that a change of any element changes the sum, and an exchange nearly
        # always.
        index = jax.lax.iota(jnp.uint32, math.prod(x.shape)).reshape(x.shape)
        return jnp.sum(bits.astype(jnp.uint32) * (index * jnp.uint32(2_654_435_762) + 1))

    flat = {"/".join(path): x for path, x in flatten_dict(params).items()}
    sums = jax.jit(lambda tree: jax.tree.map(weighted_sum, tree))(flat)
    text = json.dumps({name: int(x) for name, x in jax.device_get(sums).items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _record_key(example: Example) -> str:
    """A record's source, and a checksum of its content and its clips' lengths."""
    record = example.record
    content = json.dumps([record.raw, example.num_samples, example.num_tokens], default=str)
    return f"{record.source} {zlib.crc32(content.encode()):08x}"


def _compute(
    run: TrainingRun, data: TrainDataset, params: Params, console: Console
) -> dict[str, list[float]]:
    """Log-probabilities of every record of a dataset, by `_record_key`."""
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
    rows = {}
    steps = range(data.steps_per_epoch)
    for step in track(steps, "reference", console=console, disable=not is_main_process()):
        batch = shard_batch(agree(lambda step=step: data.batch(step, local)), run.mesh)  # type: ignore[misc]
        found = np.asarray(compiled(params, batch))
        by_record = np.moveaxis(found, 2, -1).reshape(-1, n)
        # Rows that pad the last batch of an epoch come after the others.
        for index, log_probs in zip(data.example_indices(step), by_record, strict=False):
            rows[_record_key(data.examples[index])] = [float(x) for x in log_probs]
    return rows
