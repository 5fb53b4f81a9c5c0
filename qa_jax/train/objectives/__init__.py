"""Training objectives, chosen by name. To add one: one file, and one line in `OBJECTIVES`."""

from qa_jax.config import RunConfig
from qa_jax.errors import InputError, suggest
from qa_jax.train.models import PolicyModels
from qa_jax.train.objectives.base import LossOutput, Objective
from qa_jax.train.objectives.dpo import DPO
from qa_jax.train.objectives.log_probs import chosen_and_rejected, completion_log_probs
from qa_jax.train.objectives.sft import SFT, next_token_loss

OBJECTIVES: dict[str, type[Objective]] = {
    "sft": SFT,
    "dpo": DPO,
}
"""Objectives by the name that `train.objective` takes."""


def objective_class(name: str) -> type[Objective]:
    """The objective of that name; raises InputError with the nearest name."""
    if name not in OBJECTIVES:
        raise InputError(f"train.objective {name}", "no such objective", suggest(name, OBJECTIVES))
    return OBJECTIVES[name]


def make_objective(config: RunConfig, models: PolicyModels, num_batch_shards: int) -> Objective:
    """The objective of a run."""
    return objective_class(config.train.objective)(config, models, num_batch_shards)


__all__ = [
    "DPO",
    "OBJECTIVES",
    "SFT",
    "LossOutput",
    "Objective",
    "chosen_and_rejected",
    "completion_log_probs",
    "make_objective",
    "next_token_loss",
    "objective_class",
]
