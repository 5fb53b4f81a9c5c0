"""The objective protocol: the batch an objective needs, its loss, its metrics, its reference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp

from qa_jax.config import RunConfig
from qa_jax.data import TrainBatch
from qa_jax.lora import lora_dropout_keys
from qa_jax.model import Qwen2Audio, bind
from qa_jax.train.models import PolicyModels
from qa_jax.trees import merge_trees
from qa_jax.typing import Array, Bool, Float, Int, Key, Params

Reference = Literal["none", "base", "in_memory", "precomputed"]


class LossOutput(NamedTuple):
    """Unreduced sums of a batch.

    Losses and weights of all micro-batches are summed before they are divided once, so gradient
    accumulation, packing, padding and sharding cannot change a loss.

    Attributes:
        loss: sum of the weighted losses.
        weight: sum of the weights.
        means: auxiliary metrics by name, as (sum, count).
        totals: auxiliary metrics by name that are not averaged.
    """

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    means: dict[str, tuple[Array, Array]]
    totals: dict[str, Array]

    def metrics(self) -> dict[str, Float[Array, ""]]:
        """Averaged means, NaN for those of nothing, and the totals, by name."""
        return {k: jnp.divide(x, n) for k, (x, n) in self.means.items()} | self.totals


class Objective(ABC):
    """What a run minimises.

    Args:
        config: the run's settings.
        models: the models of the run.
        num_batch_shards: shards of the batch.

    Attributes:
        num_completions: completions per record; they are rows of the batch (see `TrainBatch`).
    """

    num_completions: ClassVar[int] = 1

    def __init__(self, config: RunConfig, models: PolicyModels, num_batch_shards: int) -> None:
        self.config, self.models, self.num_batch_shards = config, models, num_batch_shards
        self._policy = bind(models.policy)
        dropout = models.policy_with_dropout
        self._policy_with_dropout = None if dropout is None else bind(dropout)

    @classmethod
    def check_config(cls, config: RunConfig) -> None:
        """Raises InputError for settings that this objective does not support."""
        return

    @property
    def reference(self) -> Reference:
        """The reference policy: ``none``; ``base``, the policy's own frozen base; ``in_memory``,
        the initial model as `ref_params`; ``precomputed``, log-probabilities in the batch."""
        return "none"

    @abstractmethod
    def loss(
        self,
        params: Params,
        batch: TrainBatch,
        ref_params: Params | None,
        rng: Key[Array, ""] | None,
    ) -> LossOutput:
        """The loss of a micro-batch.

        Args:
            params: all parameters of the policy.
            batch: without its leading dimension.
            ref_params: parameters of the reference policy, if `reference` is ``in_memory``.
            rng: dropout key; None for no dropout.
        """

    def policy(self, params: Params, rng: Key[Array, ""] | None) -> Qwen2Audio:
        """The policy with these parameters, and with dropout if a key is given."""
        dropout_model = self.models.policy_with_dropout
        if rng is None or dropout_model is None or self._policy_with_dropout is None:
            return self._policy(params)
        keys = lora_dropout_keys(dropout_model, rng)
        return self._policy_with_dropout(merge_trees(params, keys))


def batch_totals(
    batch: TrainBatch, loss_mask: Bool[Array, "B targets"]
) -> dict[str, Int[Array, ""] | Float[Array, ""]]:
    """Target tokens and seconds of audio of a micro-batch."""
    seconds = jnp.zeros(()) if batch.num_frames is None else jnp.sum(batch.num_frames) * 0.01
    return {"tokens": jnp.sum(loss_mask), "audio_seconds": seconds}
