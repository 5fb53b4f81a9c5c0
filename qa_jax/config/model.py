"""The model's settings, with Hugging Face's names where it has them, and presets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qa_jax.errors import InputError, suggest

Dtype = Literal["bfloat16", "float32", "float64"]


def _check_divisible(name: str, divisor: int, size: int) -> None:
    if divisor < 1 or size % divisor:
        raise InputError(name, f"{divisor} does not divide {size}", "choose a divisor")


@dataclass(frozen=True)
class AudioConfig:
    """The audio encoder: HF's ``audio_config``. Defaults are those of Qwen2-Audio-7B."""

    num_mel_bins: int = 128
    d_model: int = 1280
    encoder_layers: int = 32
    encoder_attention_heads: int = 20
    encoder_ffn_dim: int = 5120
    max_source_positions: int = 1500

    def __post_init__(self) -> None:
        _check_divisible(
            "audio.encoder_attention_heads", self.encoder_attention_heads, self.d_model
        )

    @property
    def head_dim(self) -> int:
        return self.d_model // self.encoder_attention_heads

    @property
    def max_frames(self) -> int:
        """Frames of the longest log-mel: the second convolution halves it."""
        return 2 * self.max_source_positions


@dataclass(frozen=True)
class TextConfig:
    """The text decoder: HF's ``text_config``. Defaults are those of Qwen2-Audio-7B."""

    vocab_size: int = 156_032
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        _check_divisible(
            "text.num_key_value_heads", self.num_key_value_heads, self.num_attention_heads
        )
        if self.head_dim % 2:
            raise InputError(
                "text.head_dim", f"{self.head_dim} is odd", "rotary embeddings need an even size"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A whole Qwen2-Audio.

    Attributes:
        audio: the encoder.
        text: the decoder.
        audio_token_id: the vocabulary entry that is replaced by audio embeddings.
        eos_token_ids: stop ids named by config.json; a checkpoint's generation_config.json takes
            precedence.
        dtype: compute dtype of activations; parameters keep their own.
        weights: ``int8`` for kernels of linear layers in 8 bits, for inference.
        remat: what the backward pass recomputes: ``none`` saves every activation, ``full`` saves
            each layer's input only, ``attention`` also the results of attention (of splash and
            chunked attention), ``mlp`` also those of the decoder's gate and up projections,
            ``dots`` those of all matrix products.
        attention_impl: attention implementation: ``chunked`` (pure JAX, every platform), ``splash``
            (JAX's Pallas kernel for TPUs; bfloat16 self-attention, otherwise chunked), ``cudnn``
            (NVIDIA GPUs), or ``auto``: splash on TPUs, otherwise chunked.
        unroll_layers: compile the layers one by one instead of as a scanned loop: slower to
            compile, a little faster to run for few layers. Without effect where remat recomputes,
            which saves memory only in a loop.
        conv_init_scale: scale of the initial convolution kernels.
        position_init_scale: scale of the initial position table.
    """

    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    audio_token_id: int = 151_646
    eos_token_ids: tuple[int, ...] = (151_645,)
    dtype: Dtype = "bfloat16"
    weights: Literal["float", "int8"] = "float"
    remat: Literal["none", "full", "attention", "mlp", "dots"] = "none"
    attention_impl: Literal["auto", "chunked", "splash", "cudnn"] = "auto"
    unroll_layers: bool = False
    conv_init_scale: float = 1.0
    position_init_scale: float = 1.0


PRESETS: dict[str, ModelConfig] = {
    "qwen2_audio_7b": ModelConfig(remat="full"),
    # Large enough to measure on a laptop's CPU: what `make bench` compares with transformers.
    "bench": ModelConfig(
        audio=AudioConfig(
            d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536
        ),
        text=TextConfig(
            vocab_size=32_000,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=8,
            head_dim=64,
        ),
        audio_token_id=31_999,
        eos_token_ids=(),
        dtype="float32",
    ),
    # What `make demo` trains. The tokenizer that it trains first sets vocabulary and special ids;
    # the initial scales are the ones with which this small encoder learns from few steps.
    "demo": ModelConfig(
        audio=AudioConfig(
            num_mel_bins=80,
            d_model=128,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=512,
        ),
        text=TextConfig(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        ),
        audio_token_id=6,
        eos_token_ids=(),
        dtype="float32",
        unroll_layers=True,
        conv_init_scale=6.0,
        position_init_scale=0.5,
    ),
}


def preset(name: str) -> ModelConfig:
    """The model configuration of that name; raises InputError with the nearest name."""
    if name not in PRESETS:
        raise InputError(name, "no such model preset", suggest(name, PRESETS))
    return PRESETS[name]
