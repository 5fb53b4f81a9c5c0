"""The report's three stages at the demo's scale: pre-training, fine-tuning, preferences."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qa_jax.api import LoadedModel, load
from qa_jax.config import run_config
from qa_jax.demo import run as demo
from qa_jax.demo.corpus import write_manifest
from qa_jax.demo.pairs import make_pairs, silent_manifest
from qa_jax.evaluate import Scores, evaluate, evaluate_pairs
from qa_jax.train import train

RECIPE = "demo_prefer.yaml"
_PAIRS = {"train": 600, "dev": 120, "test": 150}
"""Pairs of each of four kinds."""
# Word error rate of transcription; answers exactly right in voice chat, in analysis and to sounds
# without a question; pairs whose better answer is the likelier one.
_COLUMNS = {
    "transcribe": "words wrong",
    "chat": "voice chat",
    "analyse": "analysis",
    "silent": "nobody asked",
    "preferred": "better answer",
}


def run_stages(output: Path, configs: Path, seed: int = 0) -> dict[str, dict[str, float]]:
    """Runs the demo where it has not been run, learns preferences from its model, and tells what
    each stage's model can do on held-out clips.

    What exists already is kept. Returns the scores by stage, as written to OUTPUT/stages.json.
    """
    console, started = Console(), time.perf_counter()

    def say(what: str) -> None:
        console.print(f"[bold][{time.perf_counter() - started:5.0f} s] {what}")

    data = output / "data"
    if not (output / "results.json").is_file():
        demo.run(output, configs, seed)
    say("preferences: pairs of answers")
    tuned = load(output / "model")
    for split, most in _PAIRS.items():
        if not (data / f"prefer_{split}.jsonl").is_file():
            make_pairs(tuned, data, split, seed, most)
    say("preferences: learning which answer is better")
    given = [
        f"--data.train={data / 'prefer_train.jsonl'}",
        f"--data.eval={data / 'prefer_dev.jsonl'}",
        f"--data.seed={seed}",
        f"--train.init={output / 'model'}",
        f"--train.output={output / 'preferring'}",
        f"--train.seed={seed}",
    ]
    train(run_config(configs / RECIPE, given), console)

    say("answering held-out clips after each stage")
    found = {"pre-training": {"transcribe": _heard(load(output / "pretrained"), data, output)}}
    for title, name in (("fine-tuning", "model"), ("preferences", "preferring")):
        found[title] = _scores(load(output / name), data, output / name)
    (output / "stages.json").write_text(json.dumps(found, indent=2) + "\n")
    table = Table(title="Held-out results after each stage, from generated text")
    for column in ("stage", *_COLUMNS.values()):
        table.add_column(column)
    for title, scores in found.items():
        cells = (f"{scores[name]:.1%}" if name in scores else "" for name in _COLUMNS)
        table.add_row(title, *cells)
    console.print(table)
    say(f"done; to talk to it: qa-jax chat --checkpoint {output / 'preferring'}")
    return found


def _heard(qa: LoadedModel, data: Path, output: Path) -> float:
    """Word error rate of a model that knows raw prompts alone."""
    rows = [json.loads(x) for x in (data / "test_transcribe.jsonl").read_text().splitlines()]
    manifest = data / "test_heard.jsonl"
    write_manifest(manifest, map(_raw_form, rows))
    kept = output / "pretrained" / "heard.predictions.jsonl"
    return _evaluated(qa, manifest, kept).word_error_rate


def _raw_form(row: dict[str, Any]) -> dict[str, Any]:
    clip, question = row["messages"][0]["content"]
    answer = row["messages"][1]["content"]
    return {"audio": clip["audio"], "prompt": question["text"], "text": answer}


def _scores(qa: LoadedModel, data: Path, kept: Path) -> dict[str, float]:
    scores: dict[str, float] = {}
    for task in demo.TASKS:
        found = _evaluated(qa, data / f"test_{task}.jsonl", kept / f"{task}.predictions.jsonl")
        scores[task] = found.word_error_rate if task == "transcribe" else found.exact_match
    silent = _evaluated(qa, silent_manifest(data, "test"), kept / "silent.predictions.jsonl")
    scores["silent"] = silent.exact_match
    scores["preferred"] = evaluate_pairs(
        qa, data / "prefer_test.jsonl", batch_size=32, output=kept / "pairs.jsonl"
    ).preferred
    return scores


def _evaluated(qa: LoadedModel, manifest: Path, kept: Path) -> Scores:
    return evaluate(qa, manifest, batch_size=32, output=kept, max_new_tokens=demo.MAX_NEW_TOKENS)
