"""The demo's corpus: speech of many voices and other sounds, in three splits.

The splits have different voices and different texts: see `qa_jax.demo.texts`.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import wave
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qa_jax.config import SAMPLE_RATE, JsonDict
from qa_jax.data import apply_chat_template
from qa_jax.demo.synthetic import SOUNDS, Voice, make_sound, settings_of, speak
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
SYNTHETIC_VOICES = 0.35
"""Fraction of training clips with a voice combined from those of training."""
_TRAIN_JOBS = 2
"""Jobs among which the training clips are divided, whatever the number of processes."""
_INHERITED = (*(f"formant {i}" for i in range(9)), "pitch", "tone", "voicing", "consonants")
MAX_SECONDS = 2.25

TRANSCRIBE = "Transcribe."
WHO = "Is the speaker a man or a woman?"
WHAT = "What kind of sound is this?"
MUSIC = "Is there music?"


Task = tuple[str, str | None, str]


class Clip(NamedTuple):
    """A clip to be synthesised, and the records that use it.

    Attributes:
        path: relative to the corpus.
        text: the spoken text, or None for a sound.
        voice: the speaker, or None.
        kind: "speech", "words" for words in random order, or a kind of sound.
        seed: seed of a sound.
        records: (task, messages' user text or None for voice chat, answer).
    """

    path: str
    text: str | None
    voice: Voice | None
    kind: str
    seed: int
    records: list[Task]


class Sizes(NamedTuple):
    """Numbers of clips and records of a split.

    Attributes:
        sentences: clips to transcribe, from the grammar of `commands`.
        fragments: clips to transcribe, one to three words in random order.
        questions: spoken questions.
        sounds: clips without speech.
        asked_about: fraction of sentences with a written question as well.
        written: written questions without audio.
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


def synthetic_voice(voices: list[dict[str, str]], rng: np.random.Generator) -> str:
    """Settings of a voice whose resonances, pitch and tone are each drawn from one of `voices`.

    With a few dozen fixed voices a model recognises those only; with a new voice per clip it
    generalises to other speakers.
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
    return "".join(f"{line}\n" for line in ("language variant", "name synthetic", *child.values()))


def written_questions(seed: int, scale: float = 1.0) -> list[tuple[str, str]]:
    """Written training questions, which train the decoder at a sixth of the cost of a clip."""
    rng = np.random.default_rng([seed, len(SPLITS)])
    kinds = spoken_questions("train")
    picked = [kinds[i % 2] for i in range(int(SIZES["train"].written * scale))]
    return [some[rng.integers(len(some))] for some in picked]


class _Planner:
    """Draws the clips of a split; the order of its draws is part of the corpus."""

    def __init__(self, split: str, seed: int) -> None:
        self.split, self.rng = split, np.random.default_rng([seed, SPLITS.index(split)])
        self.clips: list[Clip] = []
        # Whispers (eSpeak's other synthesizer) have no settings in common with the others.
        self.parents = [
            [v for v in map(settings_of, names["train"]) if "klatt" not in v]
            for names in (MEN, WOMEN)
        ]

    def draw_voice(self) -> tuple[Voice, str]:
        """A voice, and the answer to who speaks."""
        rng, split = self.rng, self.split
        is_woman = bool(rng.integers(2))
        name = str(rng.choice((WOMEN if is_woman else MEN)[split]))
        voice = Voice(name, int(rng.integers(175, 216)), int(rng.integers(42, 59)))
        # In training every clip has its own speaker; held-out voices are used unchanged.
        if split == "train":
            voice = voice._replace(tract=float(rng.uniform(0.9, 1.1)))
            if rng.random() < SYNTHETIC_VOICES:
                voice = voice._replace(settings=synthetic_voice(self.parents[is_woman], rng))
        return voice, "a woman" if is_woman else "a man"

    def add(self, text: str | None, kind: str, records: list[Task], voice: Voice | None) -> None:
        path = f"{self.split}/{len(self.clips):05}.wav"
        self.clips.append(Clip(path, text, voice, kind, int(self.rng.integers(2**31)), records))

    def add_sentence(self, text: str, asked_about: float) -> None:
        voice, speaker = self.draw_voice()
        records: list[Task] = [("transcribe", TRANSCRIBE, text)]
        if self.rng.random() < asked_about:
            questions = [
                ("analyse", WHO, speaker),
                ("analyse", WHAT, "speech"),
                ("analyse", MUSIC, "no"),
            ]
            records.append(questions[self.rng.choice(3, p=(0.7, 0.15, 0.15))])
        self.add(text, "speech", records, voice)

    def add_fragment(self, index: int, text: str) -> None:
        voice, speaker = self.draw_voice()
        # Pre-training uses all of them, fine-tuning a tenth.
        records: list[Task] = []
        if index % 20 == 0:
            records = [("transcribe", TRANSCRIBE, text)]
        elif index % 20 == 1:
            records = [("analyse", WHO, speaker)]
        self.add(text, "words", records, voice)


def plan_clips(split: str, seed: int, scale: float = 1.0) -> list[Clip]:
    """The clips of a split. `scale` shrinks it, for tests."""
    planner = _Planner(split, seed)
    rng, size = planner.rng, SIZES[split]
    sentences, fragments, num_questions, sounds = (int(n * scale) for n in size[:4])
    pool = [s for s in commands() if split_of(s) == split]
    simple = [s for s in pool if not s.startswith("the ")]
    words = sorted({w for s in (*commands(), *(q for _, q, _ in questions())) for w in s.split()})
    sums, others = spoken_questions(split)
    for i in range(sentences):
        planner.add_sentence(str(rng.choice(simple if i % 2 else pool)), size.asked_about)
    for i in range(fragments):
        planner.add_fragment(i, " ".join(rng.choice(words, size=rng.integers(1, 4))))
    for i in range(num_questions):
        pairs = others if i % 3 else sums
        question, answer = pairs[rng.integers(len(pairs))]
        voice, _ = planner.draw_voice()
        planner.add(question, "speech", [("chat", None, answer)], voice)
    for i in range(sounds):
        kind = list(SOUNDS)[i % len(SOUNDS)]
        is_music = "yes" if kind == "music" else "no"
        records: list[Task] = [("analyse", WHAT, kind), ("analyse", MUSIC, is_music)]
        planner.add(None, kind, records[: 2 if kind == "music" or i % 4 == 0 else 1], None)
    return planner.clips


def make(
    directory: str | Path, seed: int, num_processes: int = 2, scale: float = 1.0
) -> Iterator[str]:
    """Makes all splits: audio files, a manifest for each split and each task of dev and test, one
    of all training speech to transcribe (pretrain.jsonl), and the text for training the tokenizer.
    Yields a line about each finished split."""
    directory = Path(directory)
    planned = {split: plan_clips(split, seed, scale) for split in SPLITS}
    num_jobs = {split: _TRAIN_JOBS if split == "train" else 1 for split in SPLITS}
    jobs = [(directory, planned[s][i::n]) for s, n in num_jobs.items() for i in range(n)]
    for split in SPLITS:
        (directory / split).mkdir(parents=True, exist_ok=True)
    # Processes are spawned, because JAX's threads do not survive a fork. Each does one job: eSpeak
    # keeps state between texts, so its audio is reproducible only from the start of a process.
    with multiprocessing.get_context("spawn").Pool(num_processes, maxtasksperchild=1) as pool:
        made = pool.imap(_write_clips, jobs)
        for split, clips in planned.items():
            seconds = sum(itertools.islice(made, num_jobs[split]))
            rows = [
                (task, chat_row(clip.path, question, answer))
                for clip in clips
                for task, question, answer in clip.records
            ]
            if split == "train":
                rows += [
                    ("written", chat_row(None, *pair)) for pair in written_questions(seed, scale)
                ]
                # Mostly words in random order, which the language model cannot predict.
                pretrain = [
                    {"audio": c.path, "prompt": TRANSCRIBE, "text": c.text}
                    for i, c in enumerate(clips)
                    if c.text and (c.kind == "words" or i % 4 == 0)
                ]
                write_manifest(directory / "pretrain.jsonl", pretrain)
                texts = [apply_chat_template(row["messages"]).text for _, row in rows]
                texts += [row["text"] for row in pretrain]
                lines = [line for text in texts for line in text.split("\n") if line]
            write_manifest(directory / f"{split}.jsonl", (row for _, row in rows))
            if split != "train":
                for task in ("transcribe", "chat", "analyse"):
                    write_manifest(
                        directory / f"{split}_{task}.jsonl", (r for t, r in rows if t == task)
                    )
            hours = seconds / 3600
            yield f"{split}: {len(clips):,} clips, {hours:.2f} hours, {len(rows):,} records"
        pool.close()  # rather than terminate, so that their temporary directories are removed
        pool.join()
    # Written last: if it exists, the corpus is complete.
    (directory / "text.txt").write_text("\n".join(lines) + "\n")


def chat_row(clip: str | None, question: str | None, answer: str) -> JsonDict:
    """A record: a clip's path, a written question, or both, and the answer."""
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
    # Not soundfile, which waits for the disk after every file: a fifth of the corpus' time.
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())


def _speak_within(text: str, voice: Voice, seconds: float) -> np.ndarray:
    """Speaks a text, at a higher rate if it would take too long."""
    waveform = speak(text, voice)
    while waveform.size > seconds * SAMPLE_RATE:
        voice = voice._replace(rate=int(voice.rate * 1.1))
        waveform = speak(text, voice)
    return waveform


def write_manifest(path: Path, rows: Iterable[JsonDict]) -> None:
    """Writes a line for each row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
