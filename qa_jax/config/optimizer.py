"""The optimizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate.

    Attributes:
        name: "adamw"; "lion" (Chen et al. 2023), whose learning rate is a third to a tenth of
            AdamW's; "adafactor" (Shazeer and Stern 2018), whose factored second moments take 3 % of
            AdamW's memory, with a first moment as in Zhai et al. (2022, "Scaling vision
            transformers"), or without if b1 is 0; or "muon": orthogonalized momentum (Jordan
            2024) for every matrix between activations and AdamW for the rest, with which models
            trained from scratch learn in far fewer steps.
        peak_lr: learning rate after warmup.
        schedule: what follows the warmup: "cosine" or "linear" decay to the final learning rate;
            "wsd", constant and a linear decay at the end; "inverse_sqrt" of the step; "constant".
        final_lr_fraction: final learning rate of a decay as a fraction of peak_lr.
        decay_fraction: the last part of all steps in which "wsd" decays.
        warmup_steps: steps of linear rise from 0; below 1 a fraction of all steps.
        b1, b2, eps: AdamW's; the first two also Lion's, the first also Adafactor's.
        mu_dtype: dtype of the first moment (not Muon's); bfloat16 saves 2 bytes a parameter.
        grad_dtype: dtype in which gradients of matrices are summed and communicated; bfloat16
            saves 2 bytes a parameter and half of the gradients' communication.
        weight_decay: decoupled weight decay; norms and biases are not decayed.
        clip_global_norm: largest global norm of the gradients; 0 for no clipping.
        grad_accum_steps: micro-batches of one optimizer step.
        lr_multipliers: {regular expression: factor}: learning-rate multiplier of parameters whose
            path the expression matches from its start; the first match counts.
        layer_decay: in encoder and decoder, the learning rate of the k-th layer below the last is
            multiplied by this to the power of k; what comes before the first counts as one more.
        freeze: regular expressions; a parameter whose path (encoder/conv1/kernel) one of them
            matches from its start is not trained.
    """

    name: Literal["adamw", "lion", "adafactor", "muon"] = "adamw"
    peak_lr: float = 1e-4
    schedule: Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"] = "cosine"
    final_lr_fraction: float = 0.1
    decay_fraction: float = 0.2
    warmup_steps: int | float = 100
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    grad_dtype: Literal["float32", "bfloat16"] = "float32"
    weight_decay: float = 0.01
    clip_global_norm: float = 1.0
    grad_accum_steps: int = 1
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    layer_decay: float = 1.0
    freeze: tuple[str, ...] = ("encoder/embed_positions",)
