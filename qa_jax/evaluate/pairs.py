"""Which of two answers a model finds likelier, for every pair of a manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax.config import MAX_FRAMES, DataConfig
from qa_jax.data import TrainBatch, TrainData
from qa_jax.errors import InputError
from qa_jax.model import Params, Qwen2Audio, bind
from qa_jax.parallel import batch_shards
from qa_jax.train.objectives import answer_log_probs

if TYPE_CHECKING:
    from qa_jax.api import LoadedModel

_BUCKETS = (0, 104, 204, 304, 504, 1004, 2004, MAX_FRAMES)


class PairScores(NamedTuple):
    """Of a manifest of pairs.

    Attributes:
        records: how many.
        preferred: share whose better answer is likelier, as a whole.
        per_token: share whose better answer is likelier by the token.
    """

    records: int
    preferred: float
    per_token: float


def evaluate_pairs(
    qa: LoadedModel,
    manifest: str | Path,
    *,
    batch_size: int = 8,
    output: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PairScores:
    """Scores both answers of every pair.

    Args:
        qa: the model, with its tokenizer.
        manifest: of pairs.
        batch_size: pairs at a time.
        output: JSONL of log-probabilities and numbers of tokens, a line for each pair.
        progress: called with the scored and all pairs after each batch.
    """
    if qa.processor is None:
        raise InputError("checkpoint", "has no tokenizer", "put its files beside the weights")
    groups = batch_shards(qa.mesh)
    rows = -(-batch_size // groups) * groups
    most = qa.config.text.max_position_embeddings
    buckets = dict.fromkeys(_BUCKETS, rows)
    settings = DataConfig(train=str(manifest), buckets=buckets, max_tokens=most)
    data = TrainData(settings, qa.processor, groups=groups, pairs=True)
    bound = bind(Qwen2Audio(qa.config))

    def scored(params: Params, batch: TrainBatch) -> tuple[jax.Array, jax.Array]:
        found, _, wanted = answer_log_probs(bound(params), batch, groups, copies=2)
        return jnp.sum(found, axis=1), jnp.sum(wanted, axis=1)

    compiled = jax.jit(scored)
    found: dict[int, np.ndarray] = {}
    with nullcontext() if qa.mesh is None else jax.set_mesh(qa.mesh):
        for step in range(data.steps_per_epoch):
            batch = jax.tree.map(lambda x: x[0], data.batch(step))
            both = np.stack([np.asarray(x) for x in compiled(qa.params, batch)], axis=-1)
            pairs = np.swapaxes(both.reshape(groups, 2, -1, 2), 1, 2).reshape(-1, 2, 2)
            found |= dict(zip(data.members(step), pairs, strict=False))
            if progress is not None:
                progress(len(found), len(data.examples))
    scores = np.stack([found[i] for i in range(len(found))])
    if output is not None:
        with Path(output).open("w") as file:
            for example, pair in zip(data.examples, scores.tolist(), strict=True):
                line: dict[str, Any] = {"source": example.record.source}
                for name, (log_prob, tokens) in zip(("chosen", "rejected"), pair, strict=True):
                    line |= {name: log_prob, f"{name}_tokens": int(tokens)}
                file.write(json.dumps(line) + "\n")
    sums, means = scores[..., 0], scores[..., 0] / scores[..., 1]
    return PairScores(
        len(scores),
        float(np.mean(sums[:, 0] > sums[:, 1])),
        float(np.mean(means[:, 0] > means[:, 1])),
    )
