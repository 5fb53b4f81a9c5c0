"""`make demo`: makes a corpus, trains a small model on it, evaluates it and shows examples."""

from __future__ import annotations

import collections
import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qa_jax.api import LoadedModel, load
from qa_jax.config import JsonDict, load_run_config
from qa_jax.data import SentencePiece
from qa_jax.data.chat import DEFAULT_SYSTEM
from qa_jax.demo import corpus
from qa_jax.evaluate import Scores, evaluate, metric_of_texts
from qa_jax.train import train

# (title, recipe, manifest, output directory); each stage starts from the one before.
STAGES = (
    ("pre-training on transcription", "demo_pretrain.yaml", "pretrain.jsonl", "pretrained"),
    ("fine-tuning on conversations", "demo.yaml", "train.jsonl", "model"),
)
MAX_NEW_TOKENS = 32
VOCABULARY = 768
# In every row: as single tokens they shorten the rows by a tenth.
PHRASES = (DEFAULT_SYSTEM, "Audio 1: ")
TASKS = {
    "transcribe": ("transcription", "word error rate"),
    "chat": ("voice chat (the question is only spoken)", "exact match"),
    "analyse": ("audio analysis (a written question)", "exact match"),
}


def run(output: Path, configs: Path, seed: int = 0) -> dict[str, float]:
    """Makes the corpus, trains on it, evaluates held-out answers and shows examples.

    Existing results are kept: run again, it resumes. The recipes are in the directory `configs`.
    Returns the test scores by task, as written to OUTPUT/results.json.
    """
    console, started = Console(), time.perf_counter()

    def log(text: str) -> None:
        console.print(f"[bold][{time.perf_counter() - started:5.0f} s] {text}")

    data, tokenizer = output / "data", output / "tokenizer"
    if not (data / "text.txt").is_file():
        log("making speech and sounds")
        for line in corpus.make(data, seed):
            console.print("  " + line)
    lines = (data / "text.txt").read_text().splitlines()
    SentencePiece.train(lines, tokenizer, VOCABULARY, PHRASES)

    start: list[str] = []
    for title, recipe, manifest, name in STAGES:
        log(title)
        output_dir = output / name
        overrides = [
            f"--data.train={data / manifest}",
            f"--data.tokenizer={tokenizer}",
            f"--data.seed={seed}",
            f"--train.output_dir={output_dir}",
            f"--train.seed={seed}",
        ]
        train(load_run_config(configs / recipe, [*overrides, *start]), console)
        start = [f"--train.init_from={output_dir}"]

    log("answering held-out clips: voices and sentences that training does not contain")
    model = load(output_dir)
    results = measure(model, data, "test", output, console)
    seconds = time.perf_counter() - started
    record = {"seed": seed, "seconds": round(seconds), **results}
    (output / "results.json").write_text(json.dumps(record, indent=2) + "\n")

    show_examples(model, data, console)
    plot(model, data, output_dir, output)
    log(f"done; plots in {output}; next: qa-jax chat --checkpoint {output_dir}")
    return results


def measure(
    model: LoadedModel, data: Path, split: str, output: Path, console: Console
) -> dict[str, float]:
    """Generates every answer of a split and prints a table of scores.

    Choices about the demo are made on "dev"; "test" is for the finished demo.
    """
    table = Table(title="Held-out results, from generated text")
    for column in ("task", "clips", "metric", "score", "majority-class baseline"):
        table.add_column(column)
    results: dict[str, float] = {}
    for task, (title, metric) in TASKS.items():
        predictions = output / f"{split}_{task}.predictions.jsonl"
        predictions.unlink(missing_ok=True)  # of another model
        scores: Scores = evaluate(
            model,
            data / f"{split}_{task}.jsonl",
            output=predictions,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        references = [json.loads(x)["reference"] for x in predictions.read_text().splitlines()]
        majority = [collections.Counter(references).most_common(1)[0][0]] * len(references)
        name = "wer" if metric == "word error rate" else "exact_match"
        score, baseline = scores.values[name], metric_of_texts(name, references, majority)
        results[task] = score
        table.add_row(title, str(scores.num_records), metric, f"{score:.1%}", f"{baseline:.1%}")
    console.print(table)
    return results


def show_examples(model: LoadedModel, data: Path, console: Console) -> None:
    """Prints the answer to one held-out clip of each task."""
    for task, (title, _) in TASKS.items():
        row = json.loads((data / f"test_{task}.jsonl").read_text().splitlines()[0])
        question = _absolute(row["messages"][0], data)
        written = [p["text"] for p in question["content"] if "text" in p]
        answer = "".join(model.chat([question], stream=True, max_new_tokens=MAX_NEW_TOKENS))
        console.print(
            f"[bold]{title}[/bold]\n"
            f"  audio        {row['messages'][0]['content'][0]['audio']}\n"
            f"  instruction  {written[0] if written else '(none)'}\n"
            f"  answer       {answer}\n"
            f"  expected     {row['messages'][1]['content']}",
            highlight=False,
        )


def plot(model: LoadedModel, data: Path, output_dir: Path, output: Path) -> None:
    """Plots a clip's log-mel with its transcript, and the loss curve."""
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
    waveform = load_audio(question["content"][0]["audio"])
    waveform = np.pad(waveform, (0, -waveform.size % 160))
    log_mel = np.asarray(jax.jit(LogMel(model.config.audio.num_mel_bins))(waveform[None]))[0]
    transcript = model.chat([question], max_new_tokens=MAX_NEW_TOKENS)
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    image = axes.imshow(
        log_mel.T,
        origin="lower",
        aspect="auto",
        extent=(0, waveform.size / 16_000, 0, log_mel.shape[1]),
    )
    axes.set(xlabel="seconds", ylabel="mel bin", title=f"transcript: “{transcript}”")
    figure.colorbar(image, label="log-mel")
    figure.savefig(output / "log_mel.png", dpi=120)

    rows = read_metrics(output_dir / "metrics.jsonl")
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name, label in (("loss", "training"), ("eval_loss", "held-out (dev)")):
        points = [(r["step"], r[name]) for r in rows if name in r]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker="." if name != "loss" else "")
    axes.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.legend()
    figure.savefig(output / "loss.png", dpi=120)


def _absolute(message: JsonDict, base: Path) -> JsonDict:
    """A message with absolute paths."""
    parts = [
        {**part, "audio": str(base / part["audio"])} if "audio" in part else part
        for part in message["content"]
    ]
    return {**message, "content": parts}
