"""How often a model gives the chosen completion of a preference pair the higher probability."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.api import LoadedModel
from qa_jax.config import MAX_FRAMES, DataConfig, JsonDict
from qa_jax.data import TrainBatch, TrainDataset
from qa_jax.model import Qwen2Audio, bind
from qa_jax.parallel import num_batch_shards
from qa_jax.paths import AnyPath, as_path
from qa_jax.train.objectives import completion_log_probs
from qa_jax.typing import Params

_BUCKETS = (0, 104, 204, 304, 504, 1004, 2004, MAX_FRAMES)


class PairScores(NamedTuple):
    """Metrics of a manifest of pairs.

    Attributes:
        num_records: number of pairs.
        logp_accuracy: fraction whose chosen completion has the higher log-probability.
        mean_logp_accuracy: fraction whose chosen completion has the higher mean log-probability
            per token.
    """

    num_records: int
    logp_accuracy: float
    mean_logp_accuracy: float


def evaluate_pairs(
    model: LoadedModel,
    manifest: str | Path,
    *,
    batch_size: int = 8,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PairScores:
    """Scores both completions of every pair.

    Args:
        model: the model, with its tokenizer.
        manifest: of pairs.
        batch_size: pairs per batch.
        output: JSONL of log-probabilities and numbers of tokens, a line for each pair.
        progress: called with (pairs done, pairs in all) after each batch.
    """
    processor = model.require_processor()
    num_shards = num_batch_shards(model.mesh)
    num_rows = -(-batch_size // num_shards) * num_shards
    config = DataConfig(
        train=str(manifest),
        buckets=dict.fromkeys(_BUCKETS, num_rows),
        max_tokens=model.config.text.max_position_embeddings,
    )
    data = TrainDataset(config, processor, num_batch_shards=num_shards, num_completions=2)
    bound = bind(Qwen2Audio(model.config))

    def row_scores(params: Params, batch: TrainBatch) -> tuple[jax.Array, jax.Array]:
        log_probs, _, mask = completion_log_probs(bound(params), batch, num_shards, 2)
        return jnp.sum(log_probs, axis=1), jnp.sum(mask, axis=1)

    compiled = jax.jit(row_scores)
    found: dict[int, np.ndarray] = {}
    with nullcontext() if model.mesh is None else jax.set_mesh(model.mesh):
        for step in range(data.steps_per_epoch):
            batch = jax.tree.map(lambda x: x[0], data.batch(step))
            both = np.stack([np.asarray(x) for x in compiled(model.params, batch)], axis=-1)
            pairs = np.swapaxes(both.reshape(num_shards, 2, -1, 2), 1, 2).reshape(-1, 2, 2)
            found |= dict(zip(data.example_indices(step), pairs, strict=False))
            if progress is not None:
                progress(len(found), len(data.examples))
    scores = np.stack([found[i] for i in range(len(found))])
    if output is not None:
        _write(as_path(output), data, scores)
    sums, means = scores[..., 0], scores[..., 0] / scores[..., 1]
    return PairScores(
        len(scores),
        float(np.mean(sums[:, 0] > sums[:, 1])),
        float(np.mean(means[:, 0] > means[:, 1])),
    )


def _write(path: AnyPath, data: TrainDataset, scores: np.ndarray) -> None:
    with path.open("w") as file:
        for example, pair in zip(data.examples, scores.tolist(), strict=True):
            line: JsonDict = {"source": example.record.source}
            for name, (log_prob, num_tokens) in zip(("chosen", "rejected"), pair, strict=True):
                line |= {name: log_prob, f"{name}_tokens": int(num_tokens)}
            file.write(json.dumps(line) + "\n")
