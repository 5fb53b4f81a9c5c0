"""Generated metrics during training."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest
import yaml

import qa_jax
from qa_jax.cli import main
from qa_jax.errors import InputError
from qa_jax.evaluate import answer_scorer, evaluate
from qa_jax.train import train
from qa_jax.train.metrics import read_metrics
from qa_jax.train.run import prepare
from tests.runs import config


def answerable(manifest: Path, path: Path) -> Path:
    """The records that have a prompt."""
    lines = manifest.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith('{"text"')))
    return path


@pytest.mark.parametrize("fsdp", [1, pytest.param(2, marks=pytest.mark.eight_devices)])
def test_they_are_those_of_the_checkpoint(
    settings: dict, manifest: Path, tmp_path: Path, fsdp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each evaluation, with an engine that is made once."""
    devices = jax.devices()[:fsdp]
    monkeypatch.setattr(jax, "devices", lambda *_: devices)
    settings["data"]["eval"] = str(answerable(manifest, tmp_path / "eval.jsonl"))
    settings["mesh"]["fsdp"] = fsdp
    settings["train"] |= {"steps": 30, "eval_every": 15, "save_every": 15, "log_every": 30}
    settings["train"] |= {"eval_max_new_tokens": 8, "best_metric": "eval_exact_match"}
    settings["optimizer"]["peak_lr"] = 1e-2
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    assert main(["train", "--config", str(recipe)]) == 0
    output = settings["train"]["output_dir"]
    rows = [row for row in read_metrics(Path(output) / "metrics.jsonl") if "eval_loss" in row]
    assert [row["step"] for row in rows] == [15, 30]
    for row in rows:
        model = qa_jax.load(output, step=int(row["step"]))
        scores = evaluate(model, settings["data"]["eval"], max_new_tokens=8)
        assert row["eval_wer"] == scores.values["wer"]
        assert row["eval_exact_match"] == scores.values["exact_match"]
        assert model.default_sampling.stop_ids
    assert rows[0]["eval_wer"] != rows[1]["eval_wer"]


def test_other_metrics(settings: dict, tmp_path: Path, one_device: None) -> None:
    """Those of `train.eval_metrics` are told, and one of them names the best step; an unknown
    one is refused before anything is trained."""
    record = {"prompt": "what is three plus four", "text": "It's colour, seven"}
    manifest = tmp_path / "one.jsonl"
    manifest.write_text((json.dumps(record) + "\n") * 4)
    settings["data"] |= {"train": str(manifest), "eval": {"kitchen": str(manifest)}}
    settings["data"]["buckets"] = {0: 4}
    settings["train"] |= {"steps": 4, "eval_every": 2, "eval_max_new_tokens": 8}
    settings["train"] |= {"eval_metrics": ["cer", "bleu"], "eval_normalizer": "whisper"}
    settings["train"] |= {"eval_language": "en", "best_metric": "eval_kitchen_cer"}
    run = config(settings)
    train(run, score=answer_scorer(run))
    rows = read_metrics(Path(settings["train"]["output_dir"]) / "metrics.jsonl")
    rows = [row for row in rows if "eval_kitchen_loss" in row]
    assert len(rows) == 2
    for row in rows:
        model = qa_jax.load(settings["train"]["output_dir"], step=int(row["step"]))
        found = evaluate(
            model,
            manifest,
            metrics=["cer", "bleu"],
            normalizer="whisper",
            language="en",
            max_new_tokens=8,
        )
        assert (row["eval_kitchen_cer"], row["eval_kitchen_bleu"]) == tuple(found.values.values())
        assert "eval_kitchen_wer" not in row
    settings["train"]["eval_metrics"] = ["werr"]
    with pytest.raises(InputError, match="no 'werr'; did you mean wer"):
        answer_scorer(config(settings))


def test_answers_end_where_the_model_ends_them(
    settings: dict, tmp_path: Path, one_device: None
) -> None:
    """One record, learned by heart: its answer is right, though more tokens would be allowed."""
    record = {"prompt": "what is three plus four", "text": "seven"}
    manifest = tmp_path / "one.jsonl"
    manifest.write_text((json.dumps(record) + "\n") * 4)
    settings["data"] |= {"train": str(manifest), "eval": str(manifest), "buckets": {0: 4}}
    settings["train"] |= {"steps": 60, "eval_max_new_tokens": 8}
    settings["optimizer"]["peak_lr"] = 2e-2
    run = config(settings)
    train(run, score=answer_scorer(run))
    rows = read_metrics(Path(settings["train"]["output_dir"]) / "metrics.jsonl")
    (row,) = [row for row in rows if "eval_loss" in row]
    assert row["eval_exact_match"] == 1 and row["eval_wer"] == 0


def test_where_they_cannot_be(settings: dict, tiny_checkpoint: Path) -> None:
    settings["data"]["eval"] = settings["data"]["train"]
    lora = ["--lora.target_modules=[projector]", f"--train.init_from={tiny_checkpoint}"]
    with pytest.raises(InputError, match=r"eval_max_new_tokens: needs one process, no LoRA"):
        prepare(config(settings, "--train.eval_max_new_tokens=8", *lora))
