"""Settings from recipes, overrides and config.json; errors name the setting."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from qa_jax.config import (
    ModelConfig,
    RunConfig,
    from_hf,
    load_run_config,
    parse,
    preset,
    to_dict,
    to_hf,
)
from qa_jax.config.io import OTHER_NAMES, _flat_names, read_recipe
from qa_jax.errors import InputError

pytestmark = pytest.mark.usefixtures("one_device")


RELEASED = {
    "architectures": ["Qwen2AudioForConditionalGeneration"],
    "model_type": "qwen2_audio",
    "audio_token_index": 151646,
    "ignore_index": -100,
    "vocab_size": 156032,
    "audio_config": {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 128,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "d_model": 1280,
        "activation_function": "gelu",
        "scale_embedding": False,
        "max_source_positions": 1500,
    },
    "text_config": {
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "intermediate_size": 11008,
        "max_position_embeddings": 8192,
        "model_type": "qwen2",
        "rope_theta": 10000,
        "rms_norm_eps": 1e-05,
        "sliding_window": 32768,
        "use_mrope": False,
        "vocab_size": 156032,
    },
}


def seven_b() -> ModelConfig:
    return ModelConfig()


def test_released_config_json() -> None:
    assert from_hf(RELEASED) == seven_b()


def test_config_json_without_defaults() -> None:
    """What transformers leaves of it when a fine-tune is saved."""
    raw = {
        "model_type": "qwen2_audio",
        "audio_config": {"model_type": "qwen2_audio_encoder"},
        "text_config": {"model_type": "qwen2", "eos_token_id": 151645, "vocab_size": 154931},
    }
    config = from_hf(raw)
    assert config.text.vocab_size == 154_931
    assert config.audio == seven_b().audio
    assert config.text.rope_theta == 10_000


def test_config_json_of_newer_transformers() -> None:
    raw = {**RELEASED, "audio_token_id": 151646}
    text = {
        **RELEASED["text_config"],
        "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    }
    del text["rope_theta"], raw["audio_token_index"]
    assert from_hf({**raw, "text_config": text}).text.rope_theta == 5e5


def test_config_json_round_trip() -> None:
    for name in ("qwen2_audio_7b", "demo", "bench"):
        config = preset(name)
        back = from_hf(to_hf(config))
        assert (back.audio, back.text) == (config.audio, config.text)
        assert back.audio_token_id == config.audio_token_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "model_type is 'qwen2_vl'"),
        ({"text_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu'"),
        ({"text_config": {"use_sliding_window": True}}, "use_sliding_window"),
        ({"text_config": {"rope_scaling": {"type": "yarn"}}}, "rope_type is 'yarn'"),
        ({"audio_config": {"encoder_attention_heads": 7}}, "7 does not divide 1280"),
    ],
)
def test_unsupported_config_json_is_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_hf({**RELEASED, **change})


@pytest.mark.parametrize(
    ("raw", "argv", "message"),
    [
        ({"train": {"setps": 3}}, [], r"train\.setps; did you mean train\.steps\?"),
        ({}, ["--train.step", "3"], r"train\.step; did you mean train\.steps\?"),
        ({"train": {"steps": "many"}}, [], "train.steps"),
        ({}, ["--data.long_audio", "cut"], "long_audio"),
    ],
)
def test_wrong_settings_are_refused(raw: dict, argv: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(RunConfig, raw, "x.yaml", argv)


def test_recipe_overrides_preset_and_command_line_overrides_recipe(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("preset: demo\nmodel:\n  text: {num_hidden_layers: 3}\ntrain: {steps: 5}\n")
    config = load_run_config(path, ["--train.steps=7", "--model.audio.encoder_layers", "1"])
    assert (config.train.steps, config.model.text.num_hidden_layers) == (7, 3)
    assert config.model.audio.encoder_layers == 1
    assert config.model.text.hidden_size == preset("demo").text.hidden_size
    bigger = load_run_config(path, ["--preset", "bench"])
    assert bigger.model.text.hidden_size == preset("bench").text.hidden_size
    with pytest.raises(InputError, match="did you mean demo"):
        load_run_config(path, ["--preset=demp"])
    with pytest.raises(InputError, match="not found"):
        load_run_config(tmp_path / "absent.yaml")


def test_every_recipe_is_readable() -> None:
    recipes = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
    assert {"demo.yaml", "sft_7b.yaml"} <= {p.name for p in recipes}
    for path in recipes:
        config = load_run_config(path)
        assert parse(RunConfig, to_dict(config), path) == config


def test_number_of_settings() -> None:
    from qa_jax.config.io import _flat_names

    assert len(_flat_names(dataclasses.asdict(RunConfig()))) < 120


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("train.learning_rate", "optimizer.peak_lr"),
        ("train.gradient_accumulation_steps", "optimizer.grad_accum_steps"),
        ("lora.r", "lora.rank"),
        ("optimizer.max_grad_norm", "optimizer.clip_global_norm"),
        ("train.stepz", "train.steps"),
    ],
)
def test_names_of_other_projects_are_answered_with_ours(
    name: str, remedy: str, tmp_path: Path
) -> None:
    section, _, key = name.partition(".")
    with pytest.raises(InputError, match=rf"{name}.*did you mean {remedy}\?"):
        parse(RunConfig, {section: {key: 1}}, "recipe.yaml")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: demo\n")
    with pytest.raises(InputError, match=rf"{name}.*did you mean {remedy}\?"):
        load_run_config(recipe, [f"--{name}", "1"])


def test_every_suggested_name_is_a_setting() -> None:
    known = set(_flat_names(to_dict(RunConfig())))
    assert set(OTHER_NAMES.values()) <= known
    assert not {name for name in OTHER_NAMES if any(k.endswith(f".{name}") for k in known)}


def test_recipes_inherit(tmp_path: Path) -> None:
    (tmp_path / "hardware").mkdir()
    base, recipe = tmp_path / "base.yaml", tmp_path / "hardware" / "recipe.yaml"
    base.write_text("preset: demo\ntrain: {steps: 7, seed: 3}\ndata: {buckets: {0: 1, 504: 2}}\n")
    recipe.write_text("base: ../base.yaml\ntrain: {steps: 9}\ndata: {buckets: {3000: 4}}\n")
    config = load_run_config(recipe)
    assert (config.preset, config.train.steps, config.train.seed) == ("demo", 9, 3)
    # Buckets are one setting: they are replaced, not merged.
    assert config.data.buckets == {3000: 4}
    assert load_run_config(recipe, ["--train.steps=11"]).train.steps == 11


@pytest.mark.parametrize(("base", "message"), [("b.yaml", "own base"), ("c.yaml", "not found")])
def test_bad_bases_are_refused(base: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text(f"base: {base}\n")
    with pytest.raises(InputError, match=message):
        load_run_config(tmp_path / "a.yaml")


def test_no_recipe_repeats_its_base() -> None:
    for path in sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml")):
        recipe = yaml.safe_load(path.read_text())
        base = recipe.pop("base", None)
        if base is None:
            continue
        inherited = read_recipe(path.parent / base)
        for section, values in recipe.items():
            for name, value in values.items() if isinstance(values, dict) else ():
                assert inherited.get(section, {}).get(name) != value, f"{path}: {section}.{name}"
