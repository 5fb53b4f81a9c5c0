"""Direct preference optimization (Rafailov et al. 2023)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qa_jax.config import DPOConfig, RunConfig
from qa_jax.data import TrainBatch
from qa_jax.errors import InputError
from qa_jax.model import bind, param_specs
from qa_jax.train.models import PolicyModels
from qa_jax.train.objectives.base import LossOutput, Objective, Reference, batch_totals
from qa_jax.train.objectives.log_probs import chosen_and_rejected, completion_log_probs
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import Array, Bool, Float, Key, Params


class DPO(Objective):
    """DPO on preference pairs: see `dpo_loss`."""

    num_completions = 2

    def __init__(self, config: RunConfig, models: PolicyModels, num_batch_shards: int) -> None:
        super().__init__(config, models, num_batch_shards)
        self._base = bind(models.base)
        self._base_paths = list(param_specs(models.base))

    @classmethod
    def check_config(cls, config: RunConfig) -> None:
        if not config.train.init_from:
            raise InputError(
                "train.objective", "dpo starts from a model", "name it with train.init_from"
            )
        if config.train.length_exponent:
            raise InputError(
                "train.length_exponent", "is for sft", "set it to 0, or dpo.length_normalized"
            )
        has_augmentation = config.augment.reads_differently or config.augment.changes_step
        if config.dpo.reference == "precomputed" and has_augmentation:
            raise InputError(
                "dpo.reference", "precomputed knows no augmentation", "set it to in_memory"
            )
        if config.data.packed_length:
            raise InputError("data.packed_length", "pairs are not packed", "set it to 0")

    @property
    def reference(self) -> Reference:
        if self.config.dpo.reference == "precomputed":
            return "precomputed"
        return "base" if self.models.lora_paths else "in_memory"

    def loss(
        self,
        params: Params,
        batch: TrainBatch,
        ref_params: Params | None,
        rng: Key[Array, ""] | None,
    ) -> LossOutput:
        shards = self.num_batch_shards
        log_probs, _, loss_mask = completion_log_probs(self.policy(params, rng), batch, shards, 2)
        if batch.reference_log_probs is not None:
            reference = batch.reference_log_probs
        else:
            flat = flatten_dict(params if ref_params is None else ref_params)
            base = self._base(unflatten_dict({path: flat[path] for path in self._base_paths}))
            base_log_probs, _, _ = completion_log_probs(base, batch, shards, 2)
            reference = jax.lax.stop_gradient(jnp.sum(base_log_probs, axis=1))
        out = dpo_loss(self.config.dpo, log_probs, reference, loss_mask, shards)
        return out._replace(totals=batch_totals(batch, loss_mask))


def dpo_loss(
    config: DPOConfig,
    log_probs: Float[Array, "B T"],
    reference_log_probs: Float[Array, " B"],
    loss_mask: Bool[Array, "B T"],
    num_batch_shards: int = 1,
) -> LossOutput:
    """DPO loss and reward metrics; the losses are those of TRL 1.16.

    A pair without tokens pads the batch.

    Args:
        config: which loss.
        log_probs: of the completions' tokens, from the policy.
        reference_log_probs: of whole completions, from the reference.
        loss_mask: the completions' tokens.
        num_batch_shards: shards of the batch.

    Returns:
        Unreduced sums over pairs. `reward_accuracy`: fraction whose chosen reward is larger;
        `logp_accuracy`: whose chosen completion has the higher log-probability; `reward_margin`,
        `reward_chosen` and `reward_rejected`: beta times the log-ratio of policy and reference;
        `kl`: the mean log-ratio of the given completions, an off-policy estimate of the divergence
        that may be negative.
    """

    def pairs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return chosen_and_rejected(x, num_batch_shards)

    policy = jnp.sum(log_probs, axis=1)
    log_ratio = policy - reference_log_probs.astype(policy.dtype)
    num_tokens = jnp.sum(loss_mask, axis=1)
    is_pair = (pairs(num_tokens)[0] > 0).astype(policy.dtype)
    score = log_ratio
    if config.length_normalized or config.loss == "ipo":
        score = log_ratio / jnp.maximum(num_tokens, 1)
    chosen_score, rejected_score = pairs(score)
    loss = _margin_loss(config, chosen_score - rejected_score)
    if config.sft_weight:
        loss -= config.sft_weight * pairs(policy / jnp.maximum(num_tokens, 1))[0]
    chosen, rejected = (config.beta * x for x in pairs(log_ratio))
    metrics = {
        "reward_accuracy": chosen > rejected,
        "logp_accuracy": pairs(policy)[0] > pairs(policy)[1],
        "reward_margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "kl": (chosen + rejected) / (2 * config.beta),
    }
    n = jnp.sum(is_pair)
    means = {name: (jnp.sum(x * is_pair), n) for name, x in metrics.items()}
    return LossOutput(jnp.sum(loss * is_pair), n, means, {})


def _margin_loss(config: DPOConfig, margin: jax.Array) -> jax.Array:
    if config.loss == "sigmoid":
        s = config.label_smoothing
        loss = -(1 - s) * jax.nn.log_sigmoid(config.beta * margin)
        return loss - s * jax.nn.log_sigmoid(-config.beta * margin)
    if config.loss == "hinge":
        return jax.nn.relu(1 - config.beta * margin)
    return jnp.square(margin - 1 / (2 * config.beta))
