"""Direct preference optimization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qa_jax.errors import InputError


@dataclass(frozen=True)
class DPOConfig:
    """Direct preference optimization (Rafailov et al. 2023), for `train.objective: dpo`.

    Attributes:
        loss: `sigmoid`, the report's; `hinge` (Zhao et al. 2023) or `ipo` (Azar et al. 2023), which
            is length-normalized.
        beta: strength of the KL penalty towards the reference; for `ipo`, its tau.
        label_smoothing: probability that a pair's labels are flipped (conservative DPO); `sigmoid`
            only.
        length_normalized: compare mean instead of summed log-probabilities of the tokens.
        sft_weight: weight of an added NLL (SFT) term on the chosen response.
        reference: `in_memory` keeps a second model, the initial one, beside the policy (with LoRA
            the base model serves and nothing is added); `precomputed` stores its
            log-probabilities before the first step.
    """

    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    length_normalized: bool = False
    sft_weight: float = 0.0
    reference: Literal["in_memory", "precomputed"] = "in_memory"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise InputError("dpo.beta", f"{self.beta} is not above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError("dpo.label_smoothing", f"{self.label_smoothing} is not in [0, 0.5)")
        if self.label_smoothing and self.loss != "sigmoid":
            raise InputError("dpo.label_smoothing", f"{self.loss} has none", "set it to 0")
