"""What the demo's model hears: speech of many voices and other sounds, split three ways.

Voices are split, and so is what they say: see `qa_jax.demo.texts`.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qa_jax.config import SAMPLE_RATE
from qa_jax.data.chat import render
from qa_jax.data.synthetic import SOUNDS, Voice, make_sound, settings_of, speak
from qa_jax.demo.texts import SPLITS, commands, questions, split_of, spoken_questions

WOMEN = {
    "train": "f1 f2 f3 f4 Alicia Annie anika aunty grandma".split(),
    "dev": ["linda", "steph"],
    "test": ["f5", "Andrea", "belinda", "shelby"],
}
MEN = {
    "train": (
        "m1 m2 m4 m5 m6 m8 Alex Andy Denis Gene Henrique Hugo Jacky Lee Marco Mario Mike Nguyen "
        "Storm adam benjamin boris caleb david ed ian john michel miguel norbert pablo paul pedro "
        "quincy rob robert sandro"
    ).split(),
    "dev": ["m3", "victor", "Gene2", "gustave", "iven", "kaukovalta"],
    "test": ["m7", "antonio", "marcelo", "travis"],
}
MADE_UP = 0.35
"""Share of training clips whose voice is made up from those of training."""
_SHARES = 2
"""Jobs that training's clips are shared out to, whatever the number of processes."""
_INHERITED = (*(f"formant {i}" for i in range(9)), "pitch", "tone", "voicing", "consonants")
MAX_SECONDS = 2.25

TRANSCRIBE = "Transcribe."
WHO = "Is the speaker a man or a woman?"
WHAT = "What kind of sound is this?"
MUSIC = "Is there music?"


class Clip(NamedTuple):
    """A sound to be made and every record it is used in.

    Attributes:
        path: relative to the corpus.
        text: what is said, or None for a sound.
        voice: who says it, or None.
        kind: "speech", "words" for words in any order, or a kind of other sound.
        seed: of a sound.
        records: (task, messages' user text or None for voice chat, answer).
    """

    path: str
    text: str | None
    voice: Voice | None
    kind: str
    seed: int
    records: list[tuple[str, str | None, str]]


class Sizes(NamedTuple):
    """How much of each a split holds.

    Attributes:
        sentences: clips to transcribe, from the grammar of `commands`.
        fragments: clips to transcribe, one to three words in any order.
        questions: spoken questions.
        sounds: clips without speech.
        asked_about: share of sentences about which there is a written question, too.
        written: questions without sound, in writing.
    """

    sentences: int
    fragments: int
    questions: int
    sounds: int
    asked_about: float
    written: int


SIZES = {
    "train": Sizes(1500, 8000, 7500, 600, 0.5, 5000),
    "dev": Sizes(200, 0, 300, 120, 1.0, 0),
    "test": Sizes(250, 0, 400, 150, 1.0, 0),
}


def made_up(voices: list[dict[str, str]], rng: np.random.Generator) -> str:
    """Settings of a voice whose resonances, pitch and tone each come from another of `voices`.

    A few dozen voices teach a model to hear those few dozen; one per clip, to hear any.
    """
    child = dict(voices[rng.integers(len(voices))])
    for key in sorted({key for voice in voices for key in voice if key in _INHERITED}):
        child.pop(key, None)
        parent = voices[rng.integers(len(voices))]
        if key in parent:
            child[key] = parent[key]
        if key.startswith("formant ") and key in child:
            words = child[key].split()
            words[2] = str(round(int(words[2]) * rng.uniform(0.9, 1.1)))
            child[key] = " ".join(words)
    return "".join(f"{line}\n" for line in ("language variant", "name made_up", *child.values()))


def written_questions(seed: int, scale: float = 1.0) -> list[tuple[str, str]]:
    """Training questions in writing: they teach the decoder to answer, a sixth of a clip each."""
    rng = np.random.default_rng([seed, len(SPLITS)])
    kinds = spoken_questions("train")
    picked = [kinds[i % 2] for i in range(int(SIZES["train"].written * scale))]
    return [some[rng.integers(len(some))] for some in picked]


def plan(split: str, seed: int, scale: float = 1.0) -> list[Clip]:
    """The clips of a split. `scale` shrinks it, for tests."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    size = SIZES[split]
    sentences, fragments, asked, sounds = (int(n * scale) for n in size[:4])
    pool = [s for s in commands() if split_of(s) == split]
    simple = [s for s in pool if not s.startswith("the ")]
    words = sorted({w for s in (*commands(), *(q for _, q, _ in questions())) for w in s.split()})
    sums, others = spoken_questions(split)
    # Whispers (eSpeak's other synthesizer) have no settings in common with the others.
    parents = [
        [v for v in map(settings_of, names["train"]) if "klatt" not in v] for names in (MEN, WOMEN)
    ]

    def voice() -> tuple[Voice, str]:
        woman = bool(rng.integers(2))
        name = str(rng.choice((WOMEN if woman else MEN)[split]))
        how = Voice(name, int(rng.integers(175, 216)), int(rng.integers(42, 59)))
        # In training every clip has a speaker of its own; held-out voices are as they are.
        if split == "train":
            how = how._replace(tract=float(rng.uniform(0.9, 1.1)))
            if rng.random() < MADE_UP:
                how = how._replace(settings=made_up(parents[woman], rng))
        return how, "a woman" if woman else "a man"

    clips: list[Clip] = []

    def add(
        text: str | None, kind: str, records: list[tuple[str, str | None, str]], how: Voice | None
    ) -> None:
        path = f"{split}/{len(clips):05}.wav"
        clips.append(Clip(path, text, how, kind, int(rng.integers(2**31)), records))

    for i in range(sentences):
        text = str(rng.choice(simple if i % 2 else pool))
        how, who = voice()
        records: list[tuple[str, str | None, str]] = [("transcribe", TRANSCRIBE, text)]
        if rng.random() < size.asked_about:
            about = [("analyse", WHO, who), ("analyse", WHAT, "speech"), ("analyse", MUSIC, "no")]
            records.append(about[rng.choice(3, p=(0.7, 0.15, 0.15))])
        add(text, "speech", records, how)
    for i in range(fragments):
        text = " ".join(rng.choice(words, size=rng.integers(1, 4)))
        how, who = voice()
        # All are heard in pre-training, where the hearing is learnt; a few in fine-tuning, too.
        again: list[tuple[str, str | None, str]] = []
        if i % 20 == 0:
            again = [("transcribe", TRANSCRIBE, text)]
        elif i % 20 == 1:
            again = [("analyse", WHO, who)]
        add(text, "words", again, how)
    for i in range(asked):
        some = others if i % 3 else sums
        question, answer = some[rng.integers(len(some))]
        add(question, "speech", [("chat", None, answer)], voice()[0])
    for i in range(sounds):
        kind = list(SOUNDS)[i % len(SOUNDS)]
        music = "yes" if kind == "music" else "no"
        records = [("analyse", WHAT, kind), ("analyse", MUSIC, music)]
        add(None, kind, records[: 2 if kind == "music" or i % 4 == 0 else 1], None)
    return clips


def make(directory: str | Path, seed: int, processes: int = 2, scale: float = 1.0) -> Iterator[str]:
    """Makes all splits: sound files, a manifest for each split and each task of dev and test, one
    of all training speech to transcribe (pretrain.jsonl), and the text that the tokenizer learns
    from. Yields a word on each split as it is done."""
    directory = Path(directory)
    planned = {split: plan(split, seed, scale) for split in SPLITS}
    shares = {split: _SHARES if split == "train" else 1 for split in SPLITS}
    jobs = [(directory, planned[s][i::n]) for s, n in shares.items() for i in range(n)]
    for split in SPLITS:
        (directory / split).mkdir(parents=True, exist_ok=True)
    # Processes are spawned: JAX's threads do not survive a fork. Each does one job: eSpeak keeps
    # state from one text to the next, so that only from its start on is the sound the same again.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1) as pool:
        made = pool.imap(_write_clips, jobs)
        for split, clips in planned.items():
            seconds = sum(itertools.islice(made, shares[split]))
            rows = [
                (task, chat_row(clip.path, question, answer))
                for clip in clips
                for task, question, answer in clip.records
            ]
            if split == "train":
                rows += [
                    ("written", chat_row(None, *pair)) for pair in written_questions(seed, scale)
                ]
                # Mostly words in any order: they must be heard, a sentence's could be guessed.
                heard = [
                    {"audio": c.path, "prompt": TRANSCRIBE, "text": c.text}
                    for i, c in enumerate(clips)
                    if c.text and (c.kind == "words" or i % 4 == 0)
                ]
                write_manifest(directory / "pretrain.jsonl", heard)
                texts = [render(row["messages"]).text for _, row in rows]
                texts += [row["text"] for row in heard]
                lines = [line for text in texts for line in text.split("\n") if line]
            write_manifest(directory / f"{split}.jsonl", (row for _, row in rows))
            if split != "train":
                for task in ("transcribe", "chat", "analyse"):
                    write_manifest(
                        directory / f"{split}_{task}.jsonl", (r for t, r in rows if t == task)
                    )
            hours = seconds / 3600
            yield f"{split}: {len(clips):,} clips, {hours:.2f} hours, {len(rows):,} records"
        pool.close()  # and let them end by themselves, or their links to eSpeak's data stay behind
        pool.join()
    # Last: where it exists, the corpus is whole.
    (directory / "text.txt").write_text("\n".join(lines) + "\n")


def chat_row(clip: str | None, question: str | None, answer: str) -> dict[str, Any]:
    """A manifest's line: a clip's path, a written question, or both, and the answer."""
    content = [{"type": "audio", "audio": clip}] if clip else []
    if question:
        content.append({"type": "text", "text": question})
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
    }


def _write_clips(job: tuple[Path, list[Clip]]) -> float:
    directory, clips = job
    total = 0.0
    for clip in clips:
        rng = np.random.default_rng(clip.seed)
        if clip.text is None:
            samples = make_sound(clip.kind, rng, rng.uniform(1.0, MAX_SECONDS))
        else:
            assert clip.voice is not None
            samples = _speak_within(clip.text, clip.voice, MAX_SECONDS - 0.2)
            samples = samples * rng.uniform(0.2, 0.9) / np.abs(samples).max()
            silence = np.zeros(int(rng.uniform(0.02, 0.1) * SAMPLE_RATE), np.float32)
            samples = np.concatenate([silence, samples, silence])
            samples = samples + rng.uniform(1e-4, 2e-3) * rng.standard_normal(samples.size)
        _write_wav(directory / clip.path, samples)
        total += samples.size / SAMPLE_RATE
    return total


def _write_wav(path: Path, samples: np.ndarray) -> None:
    # Not soundfile: it waits for the disk after every file, a fifth of all the time here.
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())


def _speak_within(text: str, voice: Voice, seconds: float) -> np.ndarray:
    """Says a text, faster where it would take too long."""
    wave = speak(text, voice)
    while wave.size > seconds * SAMPLE_RATE:
        voice = voice._replace(rate=int(voice.rate * 1.1))
        wave = speak(text, voice)
    return wave


def write_manifest(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A line for each row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
