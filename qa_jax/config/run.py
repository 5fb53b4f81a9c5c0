"""All settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from qa_jax.config.augment import AugmentConfig
from qa_jax.config.data import DataConfig
from qa_jax.config.dpo import DPOConfig
from qa_jax.config.lora import LoraConfig
from qa_jax.config.mesh import MeshConfig
from qa_jax.config.model import ModelConfig
from qa_jax.config.optimizer import OptimizerConfig
from qa_jax.config.train import TrainConfig


@dataclass(frozen=True)
class RunConfig:
    """All settings of `qa-jax train`.

    Attributes:
        preset: the model configuration that `model` overrides. A model trained from scratch takes
            its vocabulary and special ids from the tokenizer; with `train.init_from`, the model is
            the checkpoint's.
    """

    preset: str = "qwen2_audio_7b"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    dpo: DPOConfig = field(default_factory=DPOConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
