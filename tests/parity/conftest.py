"""The oracle: transformers on random weights. All tests here are marked `parity`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qa_jax import hf
from qa_jax.config import from_hf


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker(pytest.mark.parity)


@pytest.fixture(scope="session", autouse=True)
def versions() -> None:
    """Refuses the transformers versions that tie this model's head by mistake."""
    transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")
    found = tuple(int(p) for p in transformers.__version__.split(".")[:3])
    assert not (5, 10, 0) <= found <= (5, 10, 3), f"transformers {found} is a wrong oracle"
    import torch

    torch.set_num_threads(2)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")


def random_reference(seed: int, **changes: Any) -> Any:
    """A random transformers model; `changes` are fields of its two configs."""
    import torch
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    rng = np.random.default_rng(seed)
    heads = int(rng.choice([2, 4]))
    head_dim = int(rng.choice([4, 8, 16]))
    audio_heads = int(rng.choice([1, 2, 4]))
    text = {
        "model_type": "qwen2",
        "vocab_size": int(rng.integers(90, 200)),
        "hidden_size": heads * head_dim,
        "intermediate_size": int(rng.integers(10, 60)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "num_attention_heads": heads,
        "num_key_value_heads": int(rng.choice([k for k in (1, 2, 4) if heads % k == 0])),
        "max_position_embeddings": 2048,
        "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
        "rope_parameters": {"rope_type": "default", "rope_theta": float(rng.choice([1e4, 1e6]))},
        "tie_word_embeddings": bool(seed % 3 == 0),
    }
    audio = {
        "num_mel_bins": int(rng.choice([80, 128])),
        "d_model": audio_heads * int(rng.choice([4, 8, 12])),
        "encoder_layers": int(rng.integers(1, 4)),
        "encoder_attention_heads": audio_heads,
        "encoder_ffn_dim": int(rng.integers(10, 60)),
        "max_source_positions": 1500,
    }
    for name, value in changes.items():
        (text if name in text else audio)[name] = value
    config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=80)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = Qwen2AudioForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if "embed_positions" in name:
            continue
        if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
            parameter.data.uniform_(0.5, 1.5)
        else:
            # Large enough that every path matters, small enough that nothing saturates.
            parameter.data.normal_(0, 0.5 / max(parameter.shape[-1], 1) ** 0.5 + 0.02)
    if text["tie_word_embeddings"]:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    model.generation_config.eos_token_id = None
    return model


def save(model: Any, directory: Path) -> Path:
    """Saves it as transformers does; a tied head is left to config.json."""
    import copy

    kept = copy.deepcopy(model)
    if model.config.text_config.tie_word_embeddings:
        import torch

        kept.lm_head.weight = torch.nn.Parameter(kept.lm_head.weight.detach().clone())
    kept.save_pretrained(directory)
    return directory


def random_batch(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Two or three rows of text and clips of odd lengths, padded on the left."""
    rng = np.random.default_rng(1000 + seed)
    text, audio = model.config.text_config, model.config.audio_config
    rows, frames = [], []
    for _ in range(int(rng.integers(2, 4))):
        row = rng.integers(0, 80, rng.integers(1, 6)).tolist()
        for _ in range(int(rng.integers(0, 3)) if frames else 1):
            n = int(rng.integers(3, 400))
            frames.append(n)
            row += [80] * (((n - 1) // 2 + 1 - 2) // 2 + 1)
            row += rng.integers(0, 80, rng.integers(1, 9)).tolist()
        row += rng.integers(81, text.vocab_size, rng.integers(1, 9)).tolist()
        rows.append(row)
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), 3), np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    features = rng.standard_normal((len(frames), audio.num_mel_bins, 3000)).astype(np.float32)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "input_features": features,
        "feature_attention_mask": (np.arange(3000) < np.array(frames)[:, None]).astype(np.int64),
    }


def as_torch(batch: dict[str, np.ndarray], dtype: Any) -> dict[str, Any]:
    import torch

    tensors = {k: torch.tensor(v) for k, v in batch.items()}
    tensors["input_features"] = tensors["input_features"].to(dtype)
    mask = tensors["attention_mask"]
    # Positions as transformers' own generate gives them: counted over what is no padding.
    tensors["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return tensors


def by_path(model: Any, of: Callable[[Any], Any]) -> dict[tuple[str, ...], np.ndarray]:
    """What `of` gives of each of a model's parameters, zeros for None, by our parameters' paths;
    layers are stacked, other dimensions as in Hugging Face's."""
    parameters = dict(model.named_parameters())
    found: dict[tuple[str, ...], list[np.ndarray]] = {}
    for name, tensor in hf.tensor_map(from_hf(model.config.to_dict())).items():
        if not tensor.is_tied_copy:
            x = of(parameters[hf.in_memory_name(name)])
            x = np.zeros(tensor.hf_shape) if x is None else x.detach().numpy()
            found.setdefault(tensor.path, []).append(tensor.from_hf(x))
    return {path: np.stack(each) for path, each in found.items()}


def relative_error(actual: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over largest magnitude."""
    return float(np.abs(actual - reference).max() / max(np.abs(reference).max(), 1e-30))
