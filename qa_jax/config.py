"""Every typed setting: frozen dataclasses, presets, reading YAML and HF's config.json.

Settings hold no arrays and import no JAX, so every other module may import this one.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from qa_jax.errors import InputError

SAMPLE_RATE = 16_000
"""Samples per second of every waveform that the model hears."""
HOP_LENGTH = 160
"""Samples between log-mel frames: 10 ms."""
N_FFT = 400
"""Samples in an analysis window: 25 ms."""
MAX_FRAMES = 3_000
"""Log-mel frames in the reference's 30 s window."""
FRAME_MARGIN = 4
"""Genuine frames encoded past a clip's end, so that the convolutions see what they would see in a
30 s window (two are enough; four keep the pooled length whole)."""

T = TypeVar("T")
Dtype = Literal["bfloat16", "float32", "float64"]


def valid_frames(samples: Any) -> Any:
    """Log-mel frames that hold a clip of so many samples (int or array): ceil(samples / 160)."""
    return -(-samples // HOP_LENGTH)


def conv_length(frames: Any) -> Any:
    """Encoder positions of so many frames, after the stride-2 convolution: ceil(frames / 2)."""
    return (frames + 1) // 2


def token_count(frames: Any) -> Any:
    """Audio tokens that a clip of so many valid frames gives: positions pooled by 2."""
    return conv_length(frames) // 2


def _divides(name: str, divisor: int, whole: int) -> None:
    if divisor < 1 or whole % divisor:
        raise InputError(name, f"{divisor} does not divide {whole}", "choose a divisor")


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
        _divides("audio.encoder_attention_heads", self.encoder_attention_heads, self.d_model)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.encoder_attention_heads

    @property
    def max_frames(self) -> int:
        """The longest log-mel that the position table serves: the second convolution halves it."""
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
        _divides("text.num_key_value_heads", self.num_key_value_heads, self.num_attention_heads)
        if self.head_dim % 2:
            raise InputError(
                "text.head_dim", f"{self.head_dim} is odd", "rotary positions need it even"
            )


@dataclass(frozen=True)
class ModelConfig:
    """A whole Qwen2-Audio.

    Attributes:
        audio: the encoder.
        text: the decoder.
        audio_token_id: the vocabulary entry whose positions are filled with audio embeddings.
        eos_token_ids: the answers' ends that config.json names; a checkpoint's
            generation_config.json comes before them.
        dtype: the type that activations are computed in; parameters keep their own.
        remat: what the backward pass recomputes: ``none`` keeps every activation, ``full`` keeps
            only each layer's input, ``dots`` keeps the results of matrix products.
        attention: by what it is computed: ``pieces``, our own; ``splash``, JAX's kernel for TPUs,
            for whole rows in bfloat16 (elsewhere pieces); ``cudnn``, NVIDIA's for GPUs; ``auto``:
            splash on TPUs, else pieces.
        unroll: compile the layers one by one instead of as a scanned loop: slower to compile,
            a little faster to run where there are few.
    """

    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    audio_token_id: int = 151_646
    eos_token_ids: tuple[int, ...] = (151_645,)
    dtype: Dtype = "bfloat16"
    remat: Literal["none", "full", "dots"] = "none"
    attention: Literal["auto", "pieces", "splash", "cudnn"] = "auto"
    unroll: bool = False


PRESETS: dict[str, ModelConfig] = {
    "qwen2_audio_7b": ModelConfig(remat="full"),
    # Big enough to measure on a laptop's processor: what `make bench` compares with transformers.
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
    # What `make demo` trains: vocabulary and special ids come from the tokenizer it trains first.
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
        unroll=True,
    ),
}


def preset(name: str) -> ModelConfig:
    """The model configuration of that name; raises InputError with the nearest name."""
    if name not in PRESETS:
        raise InputError(name, "no such model preset", nearest(name, PRESETS))
    return PRESETS[name]


def nearest(name: str, known: Any) -> str:
    """A remedy for a misspelt name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(known)


# --- a training run ------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis takes; -1 (one axis at most) takes all that remain.

    Attributes:
        data: copies of the model, each with its own rows.
        fsdp: shards of parameters and optimizer, which also take rows of their own.
        tensor: cuts within a layer: heads, mlp, vocabulary.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclass(frozen=True)
class DataConfig:
    """What is read.

    Attributes:
        train: manifest of training records (JSONL), or several as {manifest: times}: how often an
            epoch holds the records of each, at least once.
        eval: manifest of held-out records; empty for none.
        tokenizer: directory of the tokenizer's files; empty where `train.init` brings its own.
        buckets: rows per step by clip length, {log-mel frames: rows}; a clip goes to the shortest
            bucket that holds it and 4 frames more. 0 is a bucket for records without audio.
        pack_tokens: rows of so many tokens, each of several records that do not see one another; 0
            for a row to a record.
        max_tokens: the longest record, audio tokens included; a longer record is an error.
        max_unusable: records that may be left out, each with a warning, before the run stops.
        long_audio: clips over 30 s: `error`, or `truncate` with a warning.
        seed: of the order of records.
        threads: that read and decode audio ahead of the step.
    """

    train: str | dict[str, float] = ""
    eval: str = ""
    tokenizer: str = ""
    buckets: dict[int, int] = field(default_factory=lambda: {0: 8, 504: 8, 1004: 8, 3000: 8})
    pack_tokens: int = 0
    max_tokens: int = 2048
    max_unusable: int = 0
    long_audio: Literal["error", "truncate"] = "error"
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, with linear warmup and cosine decay.

    Attributes:
        name: "adamw", or "muon": orthogonalized momentum (Jordan 2024) for every matrix between
            activations and AdamW for the rest. Fresh models learn in far fewer steps with it.
        peak_lr: learning rate after warmup.
        final_lr: share of peak_lr that the cosine ends at.
        warmup_steps: steps of linear rise from 0.
        b1, b2, eps: AdamW's.
        first_moment: type that AdamW's first moment is kept in; bfloat16 saves 2 bytes a parameter.
        gradients: type that gradients of matrices are summed and sent in; bfloat16 saves 2 bytes a
            parameter and half of what the gradients' sum sends.
        weight_decay: of either; norms and biases are not decayed.
        clip_norm: largest global gradient norm; 0 for no clipping.
        accumulate: micro-batches that one step sums before it moves.
        rates: {regular expression: factor}: parameters whose path one matches from its start learn
            at so many times the rate; the first that matches counts.
        freeze: regular expressions; a parameter whose path (encoder/conv1/kernel) one of them
            matches from its start is not trained.
    """

    name: Literal["adamw", "muon"] = "adamw"
    peak_lr: float = 1e-4
    final_lr: float = 0.1
    warmup_steps: int = 100
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    first_moment: Literal["float32", "bfloat16"] = "float32"
    gradients: Literal["float32", "bfloat16"] = "float32"
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    accumulate: int = 1
    rates: dict[str, float] = field(default_factory=dict)
    freeze: tuple[str, ...] = ("encoder/embed_positions",)


@dataclass(frozen=True)
class TrainConfig:
    """The run.

    Attributes:
        output: directory of checkpoints and metrics; the same one again resumes.
        steps: optimizer steps in all.
        seed: of the initial parameters, and of an adapter's dropout.
        init: checkpoint (qa_jax or Hugging Face) or adapter of ours to start from; empty for fresh
            parameters.
        objective: what is learnt: `answers`, the assistant's turns of a manifest, or `preferences`,
            better answers rather than worse ones, from pairs (see PreferenceConfig).
        average: decay a step of a running mean of the trained parameters, which is then what is
            evaluated and saved; 0 for none.
        conv_gain: scale of fresh convolution kernels.
        position_scale: scale of the fresh position table.
        length_exponent: a record's answer tokens each weigh n ** exponent, n their number: 0
            counts tokens alike, -1 counts records alike.
        log_every, save_every, eval_every: steps between, and at the end; 0 for at the end only.
        keep: latest checkpoints that are kept.
        keep_every: and every checkpoint whose step is a multiple of this; 0 for no others.
        xla: `tuned` gives the compiler the options of `qa_jax/parallel/xla_options.py`.
        profile: first and last step of a trace, written to OUTPUT/profile.
    """

    output: str = "runs/qa_jax"
    steps: int = 1000
    seed: int = 0
    init: str = ""
    objective: Literal["answers", "preferences"] = "answers"
    average: float = 0.0
    conv_gain: float = 1.0
    position_scale: float = 1.0
    length_exponent: float = 0.0
    log_every: int = 10
    save_every: int = 500
    eval_every: int = 0
    keep: int = 3
    keep_every: int = 0
    xla: Literal["plain", "tuned"] = "plain"
    profile: tuple[int, int] | None = None


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021), learnt instead of the model, which stays as it is.

    Attributes:
        layers: regular expressions; a linear layer whose path (decoder/layers/mlp/up_proj) one of
            them matches from its start gets an adapter. Empty: the model itself is trained.
        rank: of an adapter's two matrices.
        alpha: the adapter's product counts alpha / rank times.
        dropout: share of an adapter's inputs that a training step leaves out.
        rank_stabilized: it counts alpha / sqrt(rank) times (Kalajdzievski 2023).
        base: type that the model is held in meanwhile. `int8` rounds its linear layers to 8 bits,
            with a scale for each output, and holds the rest in bfloat16.
    """

    layers: tuple[str, ...] = ()
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    rank_stabilized: bool = False
    base: Literal["bfloat16", "float32", "int8"] = "bfloat16"

    @property
    def scale(self) -> float:
        """How many times an adapter's product counts."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


@dataclass(frozen=True)
class PreferenceConfig:
    """Direct preference optimization (Rafailov et al. 2023), for `train.objective: preferences`.

    Attributes:
        loss: `sigmoid`, the report's; `hinge` (Zhao et al. 2023) or `ipo` (Azar et al. 2023), which
            compares means over an answer's tokens.
        beta: how hard the policy is held to the reference; of `ipo`, its tau.
        label_smoothing: share of pairs taken to be the wrong way round; of `sigmoid` alone.
        per_token: compare means over an answer's tokens instead of sums.
        likelihood: how much the better answer's mean negative log-likelihood adds to the loss.
        reference: `keep` a second model, the initial one, beside the policy (under LoRA, the base
            serves and nothing is kept), or `store` its log-probabilities before the first step.
    """

    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    per_token: bool = False
    likelihood: float = 0.0
    reference: Literal["keep", "store"] = "keep"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise InputError("preference.beta", f"{self.beta} is not above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(
                "preference.label_smoothing", f"{self.label_smoothing} is not in [0, 0.5)"
            )
        if self.label_smoothing and self.loss != "sigmoid":
            raise InputError("preference.label_smoothing", f"{self.loss} has none", "set it to 0")


@dataclass(frozen=True)
class RunConfig:
    """Everything that `qa-jax train` can be told.

    Attributes:
        preset: the model that `model` differs from. A fresh model takes its vocabulary and special
            ids from the tokenizer; where `train.init` names a checkpoint, that is the model.
    """

    preset: str = "qwen2_audio_7b"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)


def parse(cls: type[T], raw: dict[str, Any], source: object, argv: Sequence[str] = ()) -> T:
    """A settings class from a nested dict and dotted command-line overrides on top of it.

    Unknown names are refused with the nearest known one, values of a wrong type with the type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(cls)
    known = _dotted(to_dict(cls()))
    for name in _dotted(raw):
        if name not in known and not any(name.startswith(f"{k}.") for k in known):
            raise InputError(source, f"unknown setting {name}", nearest(name, known))
    for argument in argv:
        name = argument.removeprefix("--").split("=")[0]
        if argument.startswith("--") and name not in known:
            raise InputError("command line", f"unknown setting {name}", nearest(name, known))
    try:
        namespace = parser.parse_object(_lists(raw))
        settings = parser.instantiate(parser.parse_args(list(argv), namespace))
        return cls(**settings.as_dict())
    except ArgumentError as error:
        raise InputError(source, " ".join(str(error).split())) from None


def run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run's settings: its preset, then the YAML file, then command-line overrides."""
    raw = read_yaml(path)
    name = raw.get("preset", RunConfig.preset)
    for i, argument in enumerate(overrides):
        if argument.startswith("--preset"):
            name = argument.partition("=")[2] or "".join(overrides[i + 1 : i + 2])
    raw["model"] = _merge(to_dict(preset(name)), raw.get("model") or {})
    return parse(RunConfig, raw, path, overrides)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The base with the changes' leaves put over it."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def to_dict(config: Any) -> dict[str, Any]:
    """A settings object as plain nested dicts and lists, for YAML."""
    return _lists(dataclasses.asdict(config))


def _lists(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _lists(v) for k, v in x.items()}
    return [_lists(v) for v in x] if isinstance(x, list | tuple) else x


def _dotted(tree: dict[Any, Any], prefix: str = "") -> list[str]:
    """Names of all leaves: {"a": {"b": 1}} -> ["a.b"]. Dicts with number keys and empty ones are
    leaves."""
    names: list[str] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value and all(isinstance(k, str) for k in value):
            names += _dotted(value, f"{prefix}{key}.")
        else:
            names.append(f"{prefix}{key}")
    return names


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object from a file; raises InputError where there is none."""
    return _read(path, "JSON", json.loads)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A mapping from a YAML file; raises InputError where there is none."""
    import yaml

    return _read(path, "YAML", lambda text: yaml.safe_load(text) or {})


def _read(path: str | Path, kind: str, load: Callable[[str], Any]) -> dict[str, Any]:
    try:
        raw = load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(path, "not found", "check the path") from None
    except Exception as error:  # the YAML library's errors share no base with JSON's
        raise InputError(path, f"not readable as {kind} ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise InputError(path, f"not a {kind} mapping")
    return raw


# --- Hugging Face's config.json ------------------------------------------------------------------

_AUDIO_KEYS = [f.name for f in dataclasses.fields(AudioConfig)]
_TEXT_KEYS = [f.name for f in dataclasses.fields(TextConfig)]


def from_hf(raw: dict[str, Any], source: object = "config.json") -> ModelConfig:
    """Reads a Qwen2-Audio config.json in its old and new spellings.

    What the file leaves out takes the released model's value: fine-tunes saved by transformers
    drop whatever equals a class default, so an absent key is normal and not a fault. Raises
    InputError where the file asks for something that this model does not compute.
    """
    if raw.get("model_type", "qwen2_audio") != "qwen2_audio":
        raise InputError(
            source, f"model_type is {raw['model_type']!r}", "only qwen2_audio can be read"
        )
    audio_raw, text_raw = raw.get("audio_config") or {}, dict(raw.get("text_config") or {})
    _refuse_unsupported(audio_raw, text_raw, source)
    rope = text_raw.get("rope_parameters") or {}
    text_raw.setdefault("rope_theta", rope.get("rope_theta", TextConfig.rope_theta))
    if raw.get("tie_word_embeddings") and "tie_word_embeddings" not in text_raw:
        text_raw["tie_word_embeddings"] = True
    if "vocab_size" in raw:
        text_raw.setdefault("vocab_size", raw["vocab_size"])

    text: dict[str, Any] = {k: text_raw[k] for k in _TEXT_KEYS if text_raw.get(k) is not None}
    heads = text.get("num_attention_heads", TextConfig.num_attention_heads)
    text.setdefault("head_dim", text.get("hidden_size", TextConfig.hidden_size) // heads)
    if "num_attention_heads" in text:
        # Qwen2Config's default is 32 heads of keys; a file naming fewer heads always names these.
        text.setdefault("num_key_value_heads", min(heads, TextConfig.num_key_value_heads))
    text["rope_theta"] = float(text["rope_theta"])
    eos = text_raw.get("eos_token_id", raw.get("eos_token_id", ()))
    return ModelConfig(
        audio=AudioConfig(**{k: audio_raw[k] for k in _AUDIO_KEYS if k in audio_raw}),
        text=TextConfig(**text),
        audio_token_id=raw.get("audio_token_id", raw.get("audio_token_index", 151_646)),
        eos_token_ids=as_ids(eos),
    )


def as_ids(value: Any) -> tuple[int, ...]:
    """HF writes no id, one id or a list of ids."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _refuse_unsupported(audio: dict[str, Any], text: dict[str, Any], source: object) -> None:
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    checks = [
        ("audio_config.activation_function", audio.get("activation_function", "gelu"), "gelu"),
        ("text_config.hidden_act", text.get("hidden_act", "silu"), "silu"),
        ("text_config.model_type", text.get("model_type", "qwen2"), "qwen2"),
        ("text_config.use_sliding_window", bool(text.get("use_sliding_window")), False),
        ("rope_type", rope.get("rope_type", rope.get("type", "default")), "default"),
    ]
    for name, value, supported in checks:
        if value != supported:
            raise InputError(source, f"{name} is {value!r}", f"only {supported!r} is implemented")


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """config.json for transformers, every value written out, in the spelling all versions read."""
    text = dataclasses.asdict(config.text)
    eos = config.eos_token_ids
    text["eos_token_id"] = list(eos) if len(eos) > 1 else (eos[0] if eos else None)
    return {
        "architectures": ["Qwen2AudioForConditionalGeneration"],
        "model_type": "qwen2_audio",
        "audio_token_index": config.audio_token_id,
        "ignore_index": -100,
        "vocab_size": config.text.vocab_size,
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "audio_config": {
            "model_type": "qwen2_audio_encoder",
            **dataclasses.asdict(config.audio),
            "activation_function": "gelu",
            "scale_embedding": False,
        },
        "text_config": {
            "model_type": "qwen2",
            **text,
            "hidden_act": "silu",
            "use_sliding_window": False,
        },
    }
