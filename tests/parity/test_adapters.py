"""LoRA adapters: saved by PEFT or here, they give the same logits in both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import convert_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qa_jax import checkpoint, hf, load
from qa_jax.cli import main
from qa_jax.config import LoraConfig
from qa_jax.errors import InputError
from qa_jax.generate.inputs import prepare_inputs
from qa_jax.lora import add_lora
from qa_jax.model import AudioInput, Qwen2Audio, bind
from qa_jax.trees import flatten_dict, merge_trees
from tests.parity.conftest import as_torch, random_batch, random_reference, relative_error, save

CASES: dict[str, dict[str, Any]] = {
    "decoder attention": {"target_modules": r".*language_model.*\.(q_proj|v_proj)", "r": 3},
    "both towers": {"target_modules": ["q_proj", "v_proj"], "r": 2, "lora_alpha": 5},
    "everything": {
        "target_modules": r".*\.(q_proj|k_proj|v_proj|o_proj|out_proj|fc1|fc2|gate_proj|up_proj"
        r"|down_proj|linear)",
        "r": 4,
        "use_rslora": True,
    },
    "patterns": {
        "target_modules": ["q_proj", "fc1"],
        "r": 4,
        "rank_pattern": {"fc1": 2},
        "alpha_pattern": {"fc1": 9},
    },
    "patterns by whole names": {
        "target_modules": ["q_proj", "v_proj"],
        "r": 4,
        "alpha_pattern": {
            r"model\.language_model\.layers\.0\.self_attn\.q_proj": 24,
            r"^model\.audio_tower\..*\.v_proj": 2,
        },
        "use_rslora": True,
    },
    "layers of different rank and alpha": {
        "target_modules": ["q_proj", "fc2"],
        "r": 4,
        "rank_pattern": {r"layers\.1\..*q_proj": 2},
        "alpha_pattern": {r"layers\.0\..*q_proj": 3.0, r"layers.0.fc2": 1},
    },
    "some layers": {"target_modules": ["o_proj"], "r": 2, "layers_to_transform": [0]},
}


def adapted(model: Any, **settings: Any) -> Any:
    """The model in PEFT's wrapper, its adapter filled with random numbers."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    wrapped = get_peft_model(model, LoraConfig(**{"lora_alpha": 8, **settings})).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.1)
    return wrapped


def logits(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(**as_torch(batch, torch.float32)).logits.numpy()


@pytest.mark.parametrize("case", CASES)
def test_from_peft_and_back(case: str, tmp_path: Path) -> None:
    from peft import PeftModel

    seed = 1
    batch = random_batch(random_reference(seed), seed)
    base = save(random_reference(seed), tmp_path / "base")
    plain = logits(random_reference(seed), batch)
    reference = adapted(random_reference(seed), **CASES[case])
    reference.save_pretrained(tmp_path / "peft")
    expected = logits(reference, batch)
    valid = batch["attention_mask"].astype(bool)

    actual = load(base, adapter=tmp_path / "peft").logits(batch)
    assert relative_error(actual[valid], expected[valid]) < 1e-5
    assert relative_error(plain[valid], expected[valid]) > 1e-3, "the adapter does something"

    command = ["convert", "to-jax", str(tmp_path / "peft"), str(tmp_path / "ours")]
    assert main([*command, "--base", str(base)]) == 0
    actual = load(base, adapter=tmp_path / "ours").logits(batch)
    assert relative_error(actual[valid], expected[valid]) < 1e-5

    assert main(["convert", "to-hf", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    again = PeftModel.from_pretrained(random_reference(seed), tmp_path / "back").eval()
    assert relative_error(logits(again, batch)[valid], expected[valid]) < 1e-5


def test_modules_to_save_are_refused(tmp_path: Path) -> None:
    """Whole modules trained beside the adapter are no part of it: not dropped silently."""
    base = save(random_reference(1), tmp_path / "base")
    adapted(
        random_reference(1), target_modules=["q_proj"], r=2, modules_to_save=["lm_head"]
    ).save_pretrained(tmp_path / "peft")
    with pytest.raises(InputError, match=r"modules_to_save is \['lm_head'\], only plain LoRA"):
        load(base, adapter=tmp_path / "peft")


LAYERS = {
    "decoder attention": (r"decoder/.*/(q_proj|v_proj)",),
    "everything": ("decoder/", "encoder/", "projector"),
}


@pytest.mark.parametrize("case", LAYERS)
def test_an_adapted_model_and_its_gradients(case: str, tmp_path: Path) -> None:
    """Adapters beside the model, as in training: logits and every gradient."""
    import torch

    batch = random_batch(random_reference(1), 1)
    base = save(random_reference(1), tmp_path / "base")
    reference = adapted(random_reference(1), **CASES[case])
    reference.save_pretrained(tmp_path / "peft")
    valid = batch["attention_mask"].astype(bool)
    out = reference(**as_torch(batch, torch.float32)).logits
    torch.logsumexp(out[torch.tensor(valid)], -1).sum().backward()
    # Saved in place of the adapter itself, their gradients are read as it is.
    for name, parameter in reference.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.grad
    reference.save_pretrained(tmp_path / "gradients")

    loaded = load(base)
    adapter = hf.read_peft(tmp_path / "peft", loaded.config)
    expected = flatten_dict(hf.read_peft(tmp_path / "gradients", loaded.config).params)
    rank, scale = CASES[case]["r"], next(iter(adapter.scales.values()))
    stabilized = bool(CASES[case].get("use_rslora"))
    lora = LoraConfig(LAYERS[case], rank, 8.0, use_rslora=stabilized, base_dtype="float32")
    assert lora.scale == pytest.approx(scale)
    model = Qwen2Audio(loaded.config)
    assert set(add_lora(model, lora)) == set(adapter.scales)
    bound = bind(model)
    inputs = jax.tree.map(jnp.asarray, prepare_inputs(batch, loaded.config))

    def of(low: Any) -> tuple[Any, Any]:
        m = bound(merge_trees(loaded.params, low))
        audio = AudioInput(inputs.waveform, inputs.num_frames)
        logits = m.logits(m(inputs.tokens, inputs.attention_mask, audio))
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1) * inputs.attention_mask), logits

    low = jax.tree.map(jnp.asarray, adapter.params)
    (_, logits), gradients = jax.jit(jax.value_and_grad(of, has_aux=True))(low)
    assert relative_error(np.asarray(logits)[valid], out.detach().numpy()[valid]) < 1e-5
    for path, gradient in flatten_dict(gradients).items():
        assert relative_error(np.asarray(gradient), expected[path]) < 1e-5, path


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    base = save(random_reference(1), tmp_path / "base")
    dora = adapted(random_reference(1), target_modules=["q_proj"], r=2, use_dora=True)
    dora.save_pretrained(tmp_path / "dora")
    with pytest.raises(ValueError, match="use_dora is True"):
        load(base, adapter=tmp_path / "dora")
    head = adapted(random_reference(1), target_modules=["embed_tokens"], r=2)
    head.save_pretrained(tmp_path / "table")
    with pytest.raises(ValueError, match="not a LoRA matrix of a linear layer"):
        load(base, adapter=tmp_path / "table")


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = save(random_reference(1), tmp_path / "base")
    adapted(random_reference(1), target_modules=["q_proj"], r=2).save_pretrained(tmp_path / "peft")
    other = save(random_reference(2), tmp_path / "other")
    with pytest.raises(ValueError, match="own base model"):
        load(other, adapter=tmp_path / "peft")
    convert_weights.adapter_to_jax(tmp_path / "peft", tmp_path / "ours", base)
    with pytest.raises(ValueError, match="a model of another shape"):
        load(other, adapter=tmp_path / "ours")
    adapter, card = checkpoint.load_adapter(tmp_path / "ours")
    assert card.base == str(base) and dataclasses.is_dataclass(card.model)
    assert all(scale == 4.0 for scale in adapter.scales.values())
    with pytest.raises(ValueError, match=r"neither adapter\.yaml"):
        load(base, adapter=tmp_path)


def test_verify_with_logits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`qa-jax convert verify --logits` runs both models on a clip."""
    base = save(random_reference(1), tmp_path / "base")
    convert_weights.to_jax(base, tmp_path / "ours")
    command = ["convert", "verify", str(base), str(tmp_path / "ours"), "--logits"]
    assert main(command) == 0
    assert "the same next token at 100%" in capsys.readouterr().out
