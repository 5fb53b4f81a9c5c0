"""What training minimizes. Sums and counts come back apart and are divided once, over everything,
so that neither accumulation nor sharding nor padding can change a loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qa_jax.config import PreferenceConfig
from qa_jax.data.loader import TrainBatch
from qa_jax.model import (
    Audio,
    Params,
    Qwen2Audio,
    bind,
    declarations,
    dropout_keys,
    flatten,
    join,
    nest,
)
from qa_jax.train.cross_entropy import cross_entropy


class Sums(NamedTuple):
    """Totals of a batch.

    Attributes:
        loss: weighted losses.
        weight: of all of them.
        means: what else is told of it, by name, each a sum and the number it is divided by.
        totals: likewise, of what is not divided.
    """

    loss: jax.Array
    weight: jax.Array
    means: dict[str, tuple[jax.Array, jax.Array]]
    totals: dict[str, jax.Array]

    def named(self) -> dict[str, jax.Array]:
        """The means by name, and the totals."""
        return {k: x / jnp.maximum(n, 1) for k, (x, n) in self.means.items()} | self.totals


Objective = Callable[[Params, TrainBatch, Params | None, jax.Array | None], Sums]
"""Of (all parameters, a micro-batch, parameters that stay, a key for dropout or None)."""


def answers(model: Qwen2Audio, dropping: Qwen2Audio | None = None, groups: int = 1) -> Objective:
    """Cross-entropy of what the assistant wrote.

    Args:
        model: which is trained.
        dropping: the same, adapted with dropout, for when there is a key.
        groups: see `qa_jax.model.qwen2_audio.place_audio`.
    """
    bound = _binder(model, dropping)

    def sums(params: Params, batch: TrainBatch, _: Params | None, key: jax.Array | None) -> Sums:
        return next_token_loss(bound(params, key), batch, groups)

    return sums


def preferences(
    config: PreferenceConfig,
    model: Qwen2Audio,
    reference: Qwen2Audio,
    dropping: Qwen2Audio | None = None,
    groups: int = 1,
) -> Objective:
    """Direct preference optimization: see `preference_loss`.

    The reference is that of the batch where it holds one, else `reference` with the parameters that
    stay.
    """
    bound, bound_reference = _binder(model, dropping), bind(reference)
    its_own = declarations(reference)

    def sums(params: Params, batch: TrainBatch, stay: Params | None, key: jax.Array | None) -> Sums:
        log_probs, _, wanted = answer_log_probs(bound(params, key), batch, groups, copies=2)
        if batch.reference is not None:
            known = batch.reference
        else:
            flat = flatten(stay or params)
            plain = nest({path: flat[path] for path in its_own})
            found, _, _ = answer_log_probs(bound_reference(plain), batch, groups, copies=2)
            known = jax.lax.stop_gradient(jnp.sum(found, axis=1))
        return preference_loss(config, log_probs, known, wanted, groups)._replace(
            totals=_totals(batch, wanted)
        )

    return sums


def _binder(
    model: Qwen2Audio, dropping: Qwen2Audio | None
) -> Callable[[Params, jax.Array | None], Qwen2Audio]:
    plain = bind(model)
    if dropping is None:
        return lambda params, _: plain(params)
    with_keys = bind(dropping)

    def bound(params: Params, key: jax.Array | None) -> Qwen2Audio:
        if key is None:
            return plain(params)
        return with_keys(join(params, dropout_keys(dropping, key)))

    return bound


def next_token_loss(model: Qwen2Audio, batch: TrainBatch, groups: int = 1) -> Sums:
    """Cross-entropy of every token that carries weight, given all before it.

    Args:
        model: with its parameters bound.
        batch: one micro-batch (no leading accumulate dimension).
        groups: see `qa_jax.model.qwen2_audio.place_audio`.
    """
    log_probs, likeliest, wanted = answer_log_probs(model, batch, groups)
    weights = jnp.where(wanted, batch.weights[:, 1:], 0)
    loss = -jnp.sum(log_probs.astype(weights.dtype) * weights)
    means = {"accuracy": (jnp.sum(likeliest), jnp.sum(wanted))}
    return Sums(loss, jnp.sum(weights), means, _totals(batch, wanted))


def answer_log_probs(
    model: Qwen2Audio, batch: TrainBatch, groups: int = 1, copies: int = 1
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the tokens t + 1 of a micro-batch, given those up to t, three arrays (B, T - 1).

    Args:
        model: with its parameters bound.
        groups, copies: see `qa_jax.model.qwen2_audio.place_audio`.

    Returns:
        Log-probabilities, 0 where none is wanted; whether none is likelier; whether it is wanted:
        it carries weight, and belongs to the same record as the token before it.
    """
    audio = None if batch.signal is None else Audio(batch.signal, batch.frames)
    hidden, _ = model(batch.tokens, batch.segments, audio, groups, copies=copies)
    # Position t predicts token t + 1, so the last position predicts nothing; nor does a record's
    # last token predict the next record's first.
    same = batch.segments[:, 1:] == batch.segments[:, :-1]
    wanted = same & (batch.weights[:, 1:] > 0)
    kernel = model.decoder.head(hidden.dtype)
    loss, likeliest = cross_entropy(hidden[:, :-1], kernel, batch.tokens[:, 1:], wanted)
    return -loss, likeliest, wanted


def _totals(batch: TrainBatch, wanted: jax.Array) -> dict[str, jax.Array]:
    seconds = jnp.zeros(()) if batch.frames is None else jnp.sum(batch.frames) * 0.01
    return {"tokens": jnp.sum(wanted), "audio_seconds": seconds}


def preference_loss(
    config: PreferenceConfig,
    log_probs: jax.Array,
    reference: jax.Array,
    wanted: jax.Array,
    groups: int = 1,
) -> Sums:
    """How far pairs are from what is preferred, and by how much the policy has moved.

    Of each group's rows the first half are the better answers, the second half the worse ones to
    the same prompts. A pair without tokens only fills the batch. Rafailov et al. 2023, "Direct
    preference optimization"; the other losses as in TRL 1.16.

    Args:
        config: which loss.
        log_probs: (B, T) of the answers' tokens, from the policy.
        reference: (B,) of whole answers, from the reference.
        wanted: (B, T), which are the answers'.
        groups: that rows come in.

    Returns:
        Sums over pairs. `reward_accuracy`: share of pairs whose better answer has gained more;
        `preferred`: whose better answer is likelier; `reward_margin`, `reward_chosen` and
        `reward_rejected`: beta times the log-ratio of policy and reference; `kl`: the log-ratio of
        an answer of either kind, an estimate of the divergence on answers that were given, not
        drawn, so that it may be negative.
    """

    def pairs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = x.reshape(groups, 2, -1)
        return both[:, 0].reshape(-1), both[:, 1].reshape(-1)

    policy = jnp.sum(log_probs, axis=1)
    ratio = policy - reference.astype(policy.dtype)
    count = jnp.sum(wanted, axis=1)
    real = (pairs(count)[0] > 0).astype(policy.dtype)
    score = ratio
    if config.per_token or config.loss == "ipo":
        score = ratio / jnp.maximum(count, 1)
    better, worse = pairs(score)
    margin = better - worse
    if config.loss == "sigmoid":
        s = config.label_smoothing
        loss = -(1 - s) * jax.nn.log_sigmoid(config.beta * margin)
        loss -= s * jax.nn.log_sigmoid(-config.beta * margin)
    elif config.loss == "hinge":
        loss = jax.nn.relu(1 - config.beta * margin)
    else:
        loss = jnp.square(margin - 1 / (2 * config.beta))
    if config.likelihood:
        loss -= config.likelihood * pairs(policy / jnp.maximum(count, 1))[0]
    chosen, rejected = (config.beta * x for x in pairs(ratio))
    likelier = pairs(policy)[0] > pairs(policy)[1]
    told = {
        "reward_accuracy": chosen > rejected,
        "preferred": likelier,
        "reward_margin": chosen - rejected,
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "kl": (chosen + rejected) / (2 * config.beta),
    }
    n = jnp.sum(real)
    means = {name: (jnp.sum(x * real), n) for name, x in told.items()}
    return Sums(jnp.sum(loss * real), n, means, {})
