"""Hearing speakers that training never heard: few_words.yaml with and without augmentation.

python benchmarks/few_words.py MANIFEST --demo runs/demo      # after `make demo`; hours for 3 seeds

MANIFEST is JSONL with "audio" and the spoken word as "text", each recording by another speaker. Of
each word, 8 recordings are for training and 40 others are held out.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import soundfile
from common import replace_section

NUM_TRAIN, NUM_HELD_OUT = 8, 40
OFF = {
    "speed": "[1, 1]",
    "reverb_prob": "0",
    "time_shift": "0",
    "noise_prob": "0",
    "telephone_prob": "0",
    "gain_db": "[0, 0]",
    "time_masks": "0",
    "freq_masks": "0",
}


def split(manifest: Path, seed: int, directory: Path) -> tuple[Path, Path]:
    """Manifests of training and of held-out recordings; unreadable ones are left out."""
    by_word: dict[str, list[str]] = collections.defaultdict(list)
    for row in map(json.loads, manifest.read_text().splitlines()):
        path = manifest.parent / row["audio"]
        try:
            soundfile.read(path)
        except (RuntimeError, OSError) as error:
            print(f"left out: {path} ({error})")
            continue
        by_word[row["text"]].append(str(path.resolve()))
    rng, rows = random.Random(seed), (list[str](), list[str]())
    for word, paths in sorted(by_word.items()):
        rng.shuffle(paths)
        for i, path in enumerate(paths[: NUM_TRAIN + NUM_HELD_OUT]):
            content = [{"type": "audio", "audio": path}, {"type": "text", "text": "Transcribe."}]
            messages = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": word},
            ]
            rows[i >= NUM_TRAIN].append(json.dumps({"messages": messages}) + "\n")
    train, held_out = directory / "train.jsonl", directory / "held_out.jsonl"
    train.write_text("".join(rows[0]))
    held_out.write_text("".join(rows[1]))
    return train, held_out


def exact_match(manifest: Path, demo: Path, seed: int, augment: bool) -> tuple[float, int]:
    """Of the held-out recordings after training, and their number."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        train, held_out = split(manifest, seed, directory)
        command = ["train", "--config", "configs/few_words.yaml", f"--data.train={train}"]
        command += [f"--train.init_from={demo / 'model'}", f"--data.seed={seed}"]
        command += [f"--data.eval={held_out}", f"--train.output_dir={directory / 'run'}"]
        command += ["--train.eval_max_new_tokens=16", "--train.save_every=0"]
        if not augment:
            command += [f"--augment.{key}={value}" for key, value in OFF.items()]
        subprocess.run([sys.executable, "-m", "qa_jax.cli", *command], check=True)
        rows = (directory / "run" / "metrics.jsonl").read_text().splitlines()
        (found,) = [row["eval_exact_match"] for row in map(json.loads, rows) if "eval_loss" in row]
        return found, len(held_out.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    lines = [
        "| split | held-out recordings | no augmentation | augmentation |",
        "|---|---|---|---|",
    ]
    for seed in range(arguments.seeds):
        scores = [exact_match(arguments.manifest, arguments.demo, seed, on) for on in (False, True)]
        (off, count), (on, _) = scores
        lines.append(f"| {seed} | {count} | {off:.1%} | {on:.1%} |")
        print(lines[-1], flush=True)
    replace_section("few_words", lines)


if __name__ == "__main__":
    main()
