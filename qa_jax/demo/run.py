"""From nothing to a model that answers: make sound, train, measure, talk."""

from __future__ import annotations

import collections
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qa_jax.api import LoadedModel, load
from qa_jax.config import run_config
from qa_jax.data import SentencePiece
from qa_jax.data.chat import DEFAULT_SYSTEM
from qa_jax.demo import corpus
from qa_jax.evaluate import Scores, evaluate, exact_match, word_error_rate
from qa_jax.train import train

# (what it is, recipe, manifest, where its checkpoint goes); each starts from the one before.
STAGES = (
    ("pre-training: learning to hear", "demo_pretrain.yaml", "pretrain.jsonl", "pretrained"),
    ("fine-tuning: learning to answer", "demo.yaml", "train.jsonl", "model"),
)
MAX_NEW_TOKENS = 32
VOCABULARY = 768
# Said in every row: as single tokens they cost the small decoder a tenth of its rows less.
PHRASES = (DEFAULT_SYSTEM, "Audio 1: ")
TASKS = {
    "transcribe": ("transcription", "word error rate"),
    "chat": ("voice chat (the question is only spoken)", "exact match"),
    "analyse": ("audio analysis (a written question)", "exact match"),
}


def run(output: Path, configs: Path, seed: int = 0) -> dict[str, float]:
    """Makes the corpus, trains on it, measures held-out answers and shows a conversation.

    What exists already is kept: run again, it goes on where it stopped. Its recipes lie in the
    directory `configs`. Returns the test scores by task, as written to OUTPUT/results.json.
    """
    console, started = Console(), time.perf_counter()

    def say(what: str) -> None:
        console.print(f"[bold][{time.perf_counter() - started:5.0f} s] {what}")

    data, tokenizer = output / "data", output / "tokenizer"
    if not (data / "text.txt").is_file():
        say("making speech and sounds")
        for line in corpus.make(data, seed):
            console.print("  " + line)
    lines = (data / "text.txt").read_text().splitlines()
    SentencePiece.train(lines, tokenizer, VOCABULARY, PHRASES)

    start: list[str] = []
    for title, recipe, manifest, name in STAGES:
        say(title)
        model = output / name
        given = [
            f"--data.train={data / manifest}",
            f"--data.tokenizer={tokenizer}",
            f"--data.seed={seed}",
            f"--train.output={model}",
            f"--train.seed={seed}",
        ]
        train(run_config(configs / recipe, [*given, *start]), console)
        start = [f"--train.init={model}"]

    say("answering held-out clips: unheard voices, unheard sentences")
    qa = load(model)
    results = measure(qa, data, "test", output, console)
    seconds = time.perf_counter() - started
    written = {"seed": seed, "seconds": round(seconds), **results}
    (output / "results.json").write_text(json.dumps(written, indent=2) + "\n")

    talk(qa, data, console)
    draw(qa, data, model, output)
    say(f"done; pictures in {output}, and to talk to it: qa-jax chat --checkpoint {model}")
    return results


def measure(
    qa: LoadedModel, data: Path, split: str, output: Path, console: Console
) -> dict[str, float]:
    """Generates every answer of a split and prints the table.

    Choices about the demo are made on "dev"; "test" is read by the finished demo alone.
    """
    table = Table(title="Held-out results, from generated text")
    for column in ("task", "clips", "metric", "score", "always the commonest answer"):
        table.add_column(column)
    results: dict[str, float] = {}
    for task, (title, metric) in TASKS.items():
        predictions = output / f"{split}_{task}.predictions.jsonl"
        scores: Scores = evaluate(
            qa,
            data / f"{split}_{task}.jsonl",
            batch_size=32,
            output=predictions,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        references = [json.loads(x)["reference"] for x in predictions.read_text().splitlines()]
        commonest = [collections.Counter(references).most_common(1)[0][0]] * len(references)
        if metric == "word error rate":
            score, baseline = scores.word_error_rate, word_error_rate(references, commonest)
        else:
            score, baseline = scores.exact_match, exact_match(references, commonest)
        results[task] = score
        table.add_row(title, str(scores.records), metric, f"{score:.1%}", f"{baseline:.1%}")
    console.print(table)
    return results


def talk(qa: LoadedModel, data: Path, console: Console) -> None:
    """One held-out clip of each task, asked and answered."""
    for task, (title, _) in TASKS.items():
        row = json.loads((data / f"test_{task}.jsonl").read_text().splitlines()[0])
        question = _absolute(row["messages"][0], data)
        written = [p["text"] for p in question["content"] if "text" in p]
        answer = "".join(qa.chat([question], stream=True, max_new_tokens=MAX_NEW_TOKENS))
        console.print(
            f"[bold]{title}[/bold]\n"
            f"  sound        {row['messages'][0]['content'][0]['audio']}\n"
            f"  instruction  {written[0] if written else '(none)'}\n"
            f"  answer       {answer}\n"
            f"  expected     {row['messages'][1]['content']}",
            highlight=False,
        )


def draw(qa: LoadedModel, data: Path, model: Path, output: Path) -> None:
    """Pictures: a clip as the model hears it with its transcript, and the loss curve."""
    import matplotlib

    matplotlib.use("Agg")
    import jax
    import matplotlib.pyplot as plt
    import numpy as np

    from qa_jax.data import load_audio
    from qa_jax.model import LogMel
    from qa_jax.train.metrics import read_metrics

    row = json.loads((data / "test_transcribe.jsonl").read_text().splitlines()[0])
    question = _absolute(row["messages"][0], data)
    wave = load_audio(question["content"][0]["audio"])
    wave = np.pad(wave, (0, -wave.size % 160))
    log_mel = np.asarray(jax.jit(LogMel(qa.config.audio.num_mel_bins))(wave[None]))[0]
    heard = qa.chat([question], max_new_tokens=MAX_NEW_TOKENS)
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    image = axes.imshow(
        log_mel.T,
        origin="lower",
        aspect="auto",
        extent=(0, wave.size / 16_000, 0, log_mel.shape[1]),
    )
    axes.set(xlabel="seconds", ylabel="mel bin", title=f"heard: “{heard}”")
    figure.colorbar(image, label="log-mel")
    figure.savefig(output / "log_mel.png", dpi=120)

    rows = read_metrics(model / "metrics.jsonl")
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name, label in (("loss", "training"), ("eval_loss", "held out (dev)")):
        points = [(r["step"], r[name]) for r in rows if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if name != "loss" else "")
    axes.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.legend()
    figure.savefig(output / "loss.png", dpi=120)


def _absolute(message: dict[str, Any], base: Path) -> dict[str, Any]:
    parts = [
        {**part, "audio": str(base / part["audio"])} if "audio" in part else part
        for part in message["content"]
    ]
    return {**message, "content": parts}
