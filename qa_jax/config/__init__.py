"""Typed settings: frozen dataclasses, one module a section, and `io`, which reads and writes them.

Settings hold no arrays and import no JAX, so every other module may import this package.
"""

from qa_jax.config.audio import (
    FRAME_MARGIN,
    HOP_LENGTH,
    MAX_FRAMES,
    N_FFT,
    SAMPLE_RATE,
    conv_length,
    num_audio_tokens,
    num_frames,
)
from qa_jax.config.augment import AugmentConfig
from qa_jax.config.benchmark import BenchmarkConfig, ExportConfig, JudgeConfig
from qa_jax.config.data import DataConfig
from qa_jax.config.dpo import DPOConfig
from qa_jax.config.generation import SamplingConfig, from_generation_config, parse_token_ids
from qa_jax.config.io import (
    from_hf,
    load_run_config,
    parse,
    read_json,
    read_yaml,
    to_hf,
)
from qa_jax.config.lora import LoraConfig
from qa_jax.config.mesh import MeshConfig
from qa_jax.config.model import PRESETS, AudioConfig, Dtype, ModelConfig, TextConfig, preset
from qa_jax.config.optimizer import OptimizerConfig
from qa_jax.config.plain import JsonDict, to_dict
from qa_jax.config.run import RunConfig
from qa_jax.config.train import TrainConfig

__all__ = [
    "FRAME_MARGIN",
    "HOP_LENGTH",
    "MAX_FRAMES",
    "N_FFT",
    "PRESETS",
    "SAMPLE_RATE",
    "AudioConfig",
    "AugmentConfig",
    "BenchmarkConfig",
    "DPOConfig",
    "DataConfig",
    "Dtype",
    "ExportConfig",
    "JsonDict",
    "JudgeConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "SamplingConfig",
    "TextConfig",
    "TrainConfig",
    "conv_length",
    "from_generation_config",
    "from_hf",
    "load_run_config",
    "num_audio_tokens",
    "num_frames",
    "parse",
    "parse_token_ids",
    "preset",
    "read_json",
    "read_yaml",
    "to_dict",
    "to_hf",
]
