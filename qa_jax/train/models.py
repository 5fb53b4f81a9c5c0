"""The models of a training run: the policy, its variant with dropout, and its base."""

from __future__ import annotations

from typing import NamedTuple

from qa_jax.config import LoraConfig, ModelConfig
from qa_jax.lora import add_lora
from qa_jax.model import Qwen2Audio
from qa_jax.typing import ParamPath


class PolicyModels(NamedTuple):
    """The model being trained, and the variants that go with it.

    Attributes:
        policy: with its adapters, if it has any.
        base: without adapters; its parameters have the same dtypes.
        policy_with_dropout: with dropout keys; None without dropout.
        lora_paths: paths of the layers with an adapter.
    """

    policy: Qwen2Audio
    base: Qwen2Audio
    policy_with_dropout: Qwen2Audio | None
    lora_paths: tuple[ParamPath, ...]


def make_models(config: ModelConfig, lora: LoraConfig) -> PolicyModels:
    """The models of a run; raises InputError for a LoRA pattern that matches no layer."""
    if not lora.target_modules:
        plain = Qwen2Audio(config)
        return PolicyModels(plain, plain, None, ())
    policy, base, with_dropout = (Qwen2Audio(config) for _ in range(3))
    lora_paths = add_lora(policy, lora)
    add_lora(base, lora, adapters=False)
    add_lora(with_dropout, lora, with_dropout=True)
    return PolicyModels(policy, base, with_dropout if lora.dropout else None, lora_paths)
