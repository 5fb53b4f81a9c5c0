"""`make stages`: the report's three stages (pre-training, fine-tuning, DPO) at the demo's scale."""

from __future__ import annotations

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qa_jax.api import LoadedModel, load
from qa_jax.config import JsonDict, load_run_config
from qa_jax.demo import run as demo
from qa_jax.demo.corpus import write_manifest
from qa_jax.demo.pairs import SIZES, make_pairs, no_question_manifest
from qa_jax.evaluate import Scores, evaluate, evaluate_pairs
from qa_jax.train import train

RECIPE = "demo_dpo.yaml"
# Word error rate of transcription; exact match in voice chat, in audio analysis and for sounds
# without a question; accuracy on held-out preference pairs.
_COLUMNS = {
    "transcribe": "WER",
    "chat": "voice chat",
    "analyse": "audio analysis",
    "no_question": "no question",
    "logp_accuracy": "logp accuracy",
}


def run_stages(output: Path, configs: Path, seed: int = 0) -> dict[str, dict[str, float]]:
    """Runs the demo unless it has been run, trains its model by DPO, and evaluates each stage's
    model on held-out clips.

    Existing results are kept. Returns the scores by stage, as written to OUTPUT/stages.json.
    """
    console, started = Console(), time.perf_counter()

    def log(text: str) -> None:
        console.print(f"[bold][{time.perf_counter() - started:5.0f} s] {text}")

    data = output / "data"
    if not (output / "results.json").is_file():
        demo.run(output, configs, seed)
    log("making preference pairs")
    sft_model = load(output / "model")
    for split, sizes in SIZES.items():
        if not (data / f"dpo_{split}.jsonl").is_file():
            make_pairs(sft_model, data, split, seed, sizes)
    log("DPO on preference pairs")
    overrides = [
        f"--data.train={data / 'dpo_train.jsonl'}",
        f"--data.eval={data / 'dpo_dev.jsonl'}",
        f"--data.seed={seed}",
        f"--train.init_from={output / 'model'}",
        f"--train.output_dir={output / 'dpo'}",
        f"--train.seed={seed}",
    ]
    train(load_run_config(configs / RECIPE, overrides), console)

    log("answering held-out clips after each stage")
    wer = _pretrained_wer(load(output / "pretrained"), data, output)
    found = {"pre-training": {"transcribe": wer}}
    for title, name in (("fine-tuning", "model"), ("DPO", "dpo")):
        found[title] = _scores(load(output / name), data, output / name)
    (output / "stages.json").write_text(json.dumps(found, indent=2) + "\n")
    table = Table(title="Held-out results after each stage, from generated text")
    for column in ("stage", *_COLUMNS.values()):
        table.add_column(column)
    for title, scores in found.items():
        cells = (f"{scores[name]:.1%}" if name in scores else "" for name in _COLUMNS)
        table.add_row(title, *cells)
    console.print(table)
    log(f"done; next: qa-jax chat --checkpoint {output / 'dpo'}")
    return found


def _pretrained_wer(model: LoadedModel, data: Path, output: Path) -> float:
    """Word error rate of the pre-trained model, which is trained on raw prompts only."""
    rows = [json.loads(x) for x in (data / "test_transcribe.jsonl").read_text().splitlines()]
    manifest = data / "test_raw_prompts.jsonl"
    write_manifest(manifest, map(_raw_prompt, rows))
    predictions = output / "pretrained" / "transcribe.predictions.jsonl"
    return _evaluate(model, manifest, predictions).values["wer"]


def _raw_prompt(row: JsonDict) -> JsonDict:
    clip, question = row["messages"][0]["content"]
    answer = row["messages"][1]["content"]
    return {"audio": clip["audio"], "prompt": question["text"], "text": answer}


def _scores(model: LoadedModel, data: Path, output_dir: Path) -> dict[str, float]:
    scores: dict[str, float] = {}
    for task in demo.TASKS:
        predictions = output_dir / f"{task}.predictions.jsonl"
        found = _evaluate(model, data / f"test_{task}.jsonl", predictions)
        scores[task] = found.values["wer" if task == "transcribe" else "exact_match"]
    predictions = output_dir / "no_question.predictions.jsonl"
    found = _evaluate(model, no_question_manifest(data, "test"), predictions)
    scores["no_question"] = found.values["exact_match"]
    scores["logp_accuracy"] = evaluate_pairs(
        model, data / "dpo_test.jsonl", batch_size=32, output=output_dir / "pairs.jsonl"
    ).logp_accuracy
    return scores


def _evaluate(model: LoadedModel, manifest: Path, output: Path) -> Scores:
    output.unlink(missing_ok=True)  # of another model
    return evaluate(model, manifest, output=output, max_new_tokens=demo.MAX_NEW_TOKENS)
