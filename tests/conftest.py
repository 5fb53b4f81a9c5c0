"""Shared fixtures: tiny models and tokenizers, audio files, and the optional assets."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path

# Set before JAX starts: eight CPU devices on any machine.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests spend their time compiling: less optimization, and a cache of compiled programs.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
    ]
)
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share the directory of the main process
    _CACHE = tempfile.TemporaryDirectory(prefix="qa_jax_programs_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

from jaxtyping import install_import_hook

import tests.typechecker  # noqa: F401  (the hook imports `tests` only)

# Every annotation is checked at run time, with the shapes and dtypes of arrays.
install_import_hook("qa_jax", "tests.typechecker.typechecker")

import jax
import numpy as np
import pytest
import soundfile

import qa_jax
from qa_jax import checkpoint
from qa_jax.config import AudioConfig, ModelConfig, TextConfig, to_dict
from qa_jax.data import Processor, SentencePiece
from qa_jax.data.tokenizer import SPECIAL_TOKENS
from qa_jax.model import Qwen2Audio, initialize

CLIP = "<|audio_bos|><|AUDIO|><|audio_eos|>"
TEXT = [
    "turn on the light in the kitchen",
    "what is three plus four",
    "three plus four is seven",
    "Is the speaker a man or a woman?",
    "the quick brown fox jumps over the lazy dog",
    "user system assistant You are a helpful assistant. Audio 1: Audio 2:",
] * 4


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    """Grouped-query attention, two layers each, untied: every code path in a second."""
    return ModelConfig(
        audio=AudioConfig(
            num_mel_bins=80,
            d_model=16,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=24,
        ),
        text=TextConfig(
            vocab_size=384,
            hidden_size=32,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=1024,
        ),
        audio_token_id=6,
        eos_token_ids=(),
        dtype="float32",
    )


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of a few sentences."""
    directory = tmp_path_factory.mktemp("tokenizer")
    SentencePiece.train(TEXT, directory, 340)
    return directory


@pytest.fixture(scope="session")
def processor(tokenizer_dir: Path) -> Processor:
    return Processor(SentencePiece(tokenizer_dir))


@pytest.fixture(scope="session")
def tiny_with_text(tiny: ModelConfig, processor: Processor) -> ModelConfig:
    """`tiny` with the tokenizer's special ids."""
    return dataclasses.replace(tiny, audio_token_id=processor.audio_token_id)


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_with_text: ModelConfig, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint of random parameters with a tokenizer."""
    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    params = initialize(Qwen2Audio(tiny_with_text), jax.random.key(0))
    checkpoint.create(directory, tiny_with_text, tokenizer_dir)
    checkpoint.save_params(directory, params)
    return directory


def make_waveform(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Tones in noise, float32."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * rng.uniform(100, 3000) * t) for _ in range(3))
    return (0.1 * tones + 0.01 * rng.standard_normal(t.size)).astype(np.float32)


@pytest.fixture(scope="session")
def audio_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of audio files: valid ones, and one for every fault."""
    directory = tmp_path_factory.mktemp("sounds")
    for i in range(6):
        soundfile.write(directory / f"{i}.wav", make_waveform(0.4 + 0.15 * i, i), 16_000)
    soundfile.write(directory / "long.wav", np.zeros(16_000 * 31, np.float32), 16_000)
    soundfile.write(directory / "short.wav", np.zeros(320, np.float32), 16_000)
    soundfile.write(
        directory / "stereo.wav",
        np.stack([make_waveform(1, 1), make_waveform(1, 2)], axis=1),
        16_000,
    )
    soundfile.write(directory / "44k.flac", make_waveform(1, rate=44_100), 44_100)
    bad = make_waveform(1)
    bad[100] = np.nan
    soundfile.write(directory / "nan.wav", bad, 16_000, subtype="FLOAT")
    np.save(directory / "samples.npy", make_waveform(1))
    (directory / "text.wav").write_text("this is no sound")
    return directory


@pytest.fixture
def manifest(audio_files: Path, tmp_path: Path) -> Path:
    """Twelve records of every form: voice chat, analysis, two clips, no clip, the short form."""

    def chat(parts: list[dict], answer: str) -> dict:
        return {
            "messages": [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": answer},
            ]
        }

    def clip(i: int) -> dict:
        return {"type": "audio", "audio": str(audio_files / f"{i}.wav")}

    rows = [
        chat([clip(0)], "three plus four is seven"),
        chat([clip(1), {"type": "text", "text": "Is the speaker a man or a woman?"}], "a man"),
        chat([clip(2), clip(3), {"type": "text", "text": "what is three"}], "the light"),
        chat([{"type": "text", "text": "what is three plus four"}], "seven"),
        {
            "audio": str(audio_files / "4.wav"),
            "prompt": "turn on",
            "text": "the light in the kitchen",
        },
        {"text": "the quick brown fox"},
    ] * 2
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real recordings and the real vocabulary, where QA_JAX_ASSETS names them."""
    found = os.environ.get("QA_JAX_ASSETS")
    if not found or not Path(found).is_dir():
        pytest.skip("QA_JAX_ASSETS names no directory of recordings and vocabulary")
    return Path(found)


@pytest.fixture
def settings(tiny: ModelConfig, manifest: Path, tokenizer_dir: Path, tmp_path: Path) -> dict:
    return {
        "preset": "demo",
        "model": to_dict(tiny),
        "data": {
            "train": str(manifest),
            "tokenizer": str(tokenizer_dir),
            "buckets": {204: 4},
        },
        "optimizer": {"peak_lr": 3e-3, "warmup_steps": 2},
        "train": {"output_dir": str(tmp_path / "run"), "steps": 8, "log_every": 1, "save_every": 3},
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
    }


@pytest.fixture
def one_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.runs import one_device_mesh

    if "eight_devices" not in request.keywords:
        one_device_mesh(monkeypatch)


@pytest.fixture
def job_settings(tiny: ModelConfig, manifest: Path, tokenizer_dir: Path, tmp_path: Path) -> dict:
    return {
        "preset": "demo",
        "model": to_dict(tiny),
        "data": {"train": str(manifest), "tokenizer": str(tokenizer_dir), "buckets": {204: 8}},
        # Epsilon above rounding errors, of which Adam would otherwise use the sign.
        "optimizer": {"peak_lr": 3e-3, "warmup_steps": 2, "eps": 1e-4},
        "train": {"output_dir": str(tmp_path / "run"), "steps": 5, "log_every": 1, "save_every": 2},
        "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
    }


@pytest.fixture
def pairs(audio_files: Path, tmp_path: Path) -> Path:
    """Pairs of every form: voice chat, two clips, no clip, the short form, ms-swift's."""

    def clip(i: int) -> dict:
        return {"type": "audio", "audio": str(audio_files / f"{i}.wav")}

    chosen, rejected = {"chosen": "a man"}, {"rejected": "the light in the kitchen"}
    user = {"role": "user", "content": [clip(0)]}
    rows = [
        {"messages": [user], **chosen, **rejected},
        {
            "messages": [{"role": "user", "content": [clip(1), clip(2)]}],
            "chosen": [{"role": "assistant", "content": "seven"}],
            "rejected": [{"role": "assistant", "content": "three plus four is seven"}],
        },
        {
            "messages": [{"role": "user", "content": "what is three plus four"}],
            **chosen,
            **rejected,
        },
        {"audio": str(audio_files / "3.wav"), "prompt": "turn on", **chosen, **rejected},
        {
            "messages": [
                {"role": "user", "content": "<audio>what"},
                {"role": "assistant", "content": "a man"},
            ],
            "audios": [str(audio_files / "4.wav")],
            "rejected_response": "a woman",
        },
        {
            "messages": [user, {"role": "assistant", "content": "the fox"}, user],
            **chosen,
            **rejected,
        },
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def bpe_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte-level tokenizer in Qwen2's files, both kinds."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    directory = tmp_path_factory.mktemp("bpe")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.model.save(str(directory))
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    added = {str(size + i): {"content": t} for i, t in enumerate(SPECIAL_TOKENS)}
    config = {"added_tokens_decoder": added}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def model(tiny_checkpoint: Path) -> qa_jax.LoadedModel:
    return qa_jax.load(tiny_checkpoint)
