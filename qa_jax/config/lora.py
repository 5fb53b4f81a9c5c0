"""LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021), trained while the base model is frozen.

    Attributes:
        target_modules: regular expressions; a linear layer whose path (decoder/layers/mlp/up_proj)
            one of them matches from its start gets an adapter. Empty: the model itself is trained.
        rank: rank of the adapter's two matrices.
        alpha: the adapter's product is scaled by alpha / rank.
        dropout: dropout probability of the adapter's input.
        use_rslora: scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).
        base_dtype: dtype of the frozen base. `int8` rounds its linear layers to 8 bits, with a
            scale for each output, and keeps the rest in bfloat16.
    """

    target_modules: tuple[str, ...] = ()
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    use_rslora: bool = False
    base_dtype: Literal["bfloat16", "float32", "int8"] = "bfloat16"

    @property
    def scale(self) -> float:
        """Factor of the adapter's product."""
        return self.alpha / (self.rank**0.5 if self.use_rslora else self.rank)
