"""The optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, with linear warmup and cosine decay.

    Attributes:
        name: "adamw", or "muon": orthogonalized momentum (Jordan 2024) for every matrix between
            activations and AdamW for the rest. Models trained from scratch learn in far fewer
            steps with Muon.
        peak_lr: learning rate after warmup.
        final_lr_fraction: final learning rate as a fraction of peak_lr.
        warmup_steps: steps of linear rise from 0.
        b1, b2, eps: AdamW's.
        mu_dtype: dtype of AdamW's first moment; bfloat16 saves 2 bytes a parameter.
        grad_dtype: dtype in which gradients of matrices are summed and communicated; bfloat16
            saves 2 bytes a parameter and half of the gradients' communication.
        weight_decay: decoupled weight decay; norms and biases are not decayed.
        clip_global_norm: largest global norm of the gradients; 0 for no clipping.
        grad_accum_steps: micro-batches of one optimizer step.
        lr_multipliers: {regular expression: factor}: learning-rate multiplier of parameters whose
            path the expression matches from its start; the first match counts.
        freeze: regular expressions; a parameter whose path (encoder/conv1/kernel) one of them
            matches from its start is not trained.
    """

    name: Literal["adamw", "muon"] = "adamw"
    peak_lr: float = 1e-4
    final_lr_fraction: float = 0.1
    warmup_steps: int = 100
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    grad_dtype: Literal["float32", "bfloat16"] = "float32"
    weight_decay: float = 0.01
    clip_global_norm: float = 1.0
    grad_accum_steps: int = 1
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    freeze: tuple[str, ...] = ("encoder/embed_positions",)
