"""Where long recordings are cut, by the word error rate of their transcripts.

python benchmarks/long_audio.py --demo runs/demo       # after `make demo`; about ten minutes

The demo's model knows single sentences without pauses, so that it is first fine-tuned on one or two
sentences with pauses, up to 4.4 s. Then ten minutes of test sentences with pauses between them are
transcribed, as sentences alone and in windows of 3 s that are cut by four rules: anywhere, in the
quietest 100 ms of the last second, where WebRTC's voice activity detection (webrtcvad-wheels, if
installed) finds no speech, and by `qa_jax.data.windows`. Once clean, once with noise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import soundfile
from common import replace_section

import qa_jax
from qa_jax.data.windows import join_texts, split_windows
from qa_jax.evaluate import metric_of_texts

RATE, WINDOW, MINUTES = 16_000, 3.0, 10
NUM_CLIPS, LONGEST, STEPS = 12_000, 4.4, 1500
BUCKETS = "{104: 24, 204: 18, 304: 13, 404: 10, 484: 9}"

Sentence = tuple[np.ndarray, str]
Windows = list[tuple[int, int]]


def read_sentences(data: Path, *manifests: str) -> list[Sentence]:
    """Clips and texts of the records that ask for a transcript."""
    found: dict[str, str] = {}
    for line in (line for m in manifests for line in (data / m).read_text().splitlines()):
        row = json.loads(line)
        if "messages" not in row:
            found[row["audio"]] = row["text"]
            continue
        content = row["messages"][0]["content"]
        if isinstance(content, list) and content[-1].get("text") == "Transcribe.":
            found[content[0]["audio"]] = row["messages"][1]["content"]
    return [
        (soundfile.read(data / path, dtype="float32")[0], found[path]) for path in sorted(found)
    ]


def pause(rng: np.random.Generator, least: float, most: float) -> np.ndarray:
    level = 10 ** rng.uniform(-4, -2.3)
    return (level * rng.standard_normal(int(rng.uniform(least, most) * RATE))).astype(np.float32)


def write_training_data(sentences: list[Sentence], directory: Path) -> Path:
    rng, lines = np.random.default_rng(0), []
    for i in range(NUM_CLIPS):
        parts, texts = [pause(rng, 0, 0.6 if rng.random() < 0.7 else 0.02)], []
        for _ in range(rng.choice([1, 1, 2])):
            waveform, text = sentences[rng.integers(len(sentences))]
            if sum(map(len, parts)) + waveform.size + RATE > LONGEST * RATE:
                break
            parts += [waveform, pause(rng, 0.1, 1.2)]
            texts.append(text)
        soundfile.write(directory / f"{i}.wav", np.concatenate(parts), RATE)
        content = [{"type": "audio", "audio": f"{i}.wav"}, {"type": "text", "text": "Transcribe."}]
        answer = {"role": "assistant", "content": " ".join(texts)}
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}, answer]}))
    manifest = directory / "train.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def train(demo: Path, output: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        sentences = read_sentences(demo / "data", "train.jsonl", "pretrain.jsonl")
        manifest = write_training_data(sentences, Path(name))
        command = [
            sys.executable,
            "-m",
            "qa_jax.cli",
            "train",
            "--config",
            "configs/demo_pretrain.yaml",
        ]
        command += [
            f"--data.train={manifest}",
            f"--data.buckets={BUCKETS}",
            "--data.max_tokens=300",
        ]
        command += [f"--train.init_from={demo / 'model'}", f"--train.output_dir={output}"]
        command += [
            f"--train.steps={STEPS}",
            "--optimizer.peak_lr=3e-3",
            "--optimizer.warmup_steps=30",
        ]
        subprocess.run(command, check=True)


def cut_anywhere(waveform: np.ndarray) -> Windows:
    edges = [*range(0, waveform.size - RATE // 2, int(WINDOW * RATE)), waveform.size]
    return list(itertools.pairwise(edges))


def cut_by(place: Callable[[np.ndarray], int], waveform: np.ndarray) -> Windows:
    """Windows that end where `place` says, in the part of the waveform that is left."""
    windows, start = [], 0
    while waveform.size - start > WINDOW * RATE:
        end = start + max(RATE // 2, place(waveform[start : start + int(WINDOW * RATE)]))
        windows.append((start, end))
        start = end
    return [*windows, (start, waveform.size)]


def quietest_of_the_last_second(part: np.ndarray) -> int:
    step = RATE // 10
    blocks = part[part.size - RATE :].reshape(-1, step)
    return part.size - RATE + int((blocks**2).sum(axis=1).argmin()) * step + step // 2


def last_gap_of_webrtc(part: np.ndarray) -> int:
    """The middle of the last 90 ms or more without speech, or the end."""
    import webrtcvad

    detector, step = webrtcvad.Vad(2), RATE * 30 // 1000
    raw = (part[: part.size // step * step] * 32767).astype(np.int16).reshape(-1, step)
    quiet, ends = 0, []
    for i, block in enumerate(raw):
        is_speech = detector.is_speech(block.tobytes(), RATE)
        if is_speech and quiet >= 3:
            ends.append((2 * i - quiet) * step // 2)
        quiet = 0 if is_speech else quiet + 1
    if quiet >= 3:
        ends.append((2 * len(raw) - quiet) * step // 2)
    return next((end for end in reversed(ends) if end > RATE), part.size)


RULES: dict[str, Callable[[np.ndarray], Windows]] = {
    "anywhere": cut_anywhere,
    "quietest 100 ms of the last second": lambda w: cut_by(quietest_of_the_last_second, w),
    "WebRTC's voice activity": lambda w: cut_by(last_gap_of_webrtc, w),
    "qa_jax": lambda w: split_windows(w, WINDOW),
}


def transcribe(model: qa_jax.LoadedModel, clips: list[np.ndarray]) -> list[str]:
    return [model.transcribe((c, RATE), max_new_tokens=60, temperature=0.0).text for c in clips]


def compare(model: qa_jax.LoadedModel, sentences: list[Sentence], noise_db: float | None) -> str:
    """A row of the table: word error rates."""
    rng = np.random.default_rng(1)
    parts, used = [], list[Sentence]()
    for index in rng.permutation(len(sentences)):
        parts += [sentences[index][0], pause(rng, 0.4, 1.2)]
        used.append(sentences[index])
        if sum(map(len, parts)) > MINUTES * 60 * RATE:
            break
    whole = np.concatenate(parts)
    alone = [waveform for waveform, _ in used]
    if noise_db is not None:
        level = np.sqrt((np.concatenate(alone) ** 2).mean()) * 10 ** (-noise_db / 20)
        whole = whole + level * rng.standard_normal(whole.size).astype(np.float32)
        alone = [w + level * rng.standard_normal(w.size).astype(np.float32) for w in alone]
    texts = [text for _, text in used]
    rates = [metric_of_texts("wer", texts, transcribe(model, alone))]
    for name, rule in RULES.items():
        try:
            windows = rule(whole)
        except ImportError:
            rates.append(float("nan"))
            continue
        found = join_texts(transcribe(model, [whole[first:last] for first, last in windows]))
        rates.append(metric_of_texts("wer", [" ".join(texts)], [found]))
        print(f"{name}: {len(windows)} windows, {rates[-1]:.1%}", flush=True)
    title = "none" if noise_db is None else f"{noise_db:.0f} dB SNR"
    return (
        f"| {title} | {whole.size / RATE:.0f} s | " + " | ".join(f"{r:.1%}" for r in rates) + " |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--output", type=Path, default=Path("runs/long_audio"))
    arguments = parser.parse_args()
    if not arguments.output.exists():
        train(arguments.demo, arguments.output)
    model = qa_jax.load(arguments.output)
    sentences = read_sentences(arguments.demo / "data", "test_transcribe.jsonl")
    lines = [
        f"| noise | recording | sentences alone | {' | '.join(RULES)} |",
        "|---" * (3 + len(RULES)) + "|",
        *(compare(model, sentences, noise) for noise in (None, 20.0)),
    ]
    replace_section("long_audio", lines)


if __name__ == "__main__":
    main()
