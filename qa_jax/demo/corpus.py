"""What the demo's model hears: sentences, spoken questions and sounds, split three ways.

Voices are split, and so are texts: no sentence and no question of dev or test is in training, and
no sum that they ask is asked in training, in any wording. (Two plus five is another sum than five
plus two: of these two, one may be asked in training.)
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qa_jax.config import SAMPLE_RATE
from qa_jax.data.chat import render
from qa_jax.data.synthetic import SOUNDS, Voice, make_sound, speak

SPLITS = ("train", "dev", "test")
WOMEN = {
    "train": ["f1", "f2", "f5", "Alicia", "Andrea", "aunty", "belinda", "grandma", "shelby"],
    "dev": ["f3", "Annie"],
    "test": ["f4", "anika", "linda", "steph"],
}
MEN = {
    "train": (
        [
            "m1",
            "m2",
            "m4",
            "m6",
            "m8",
            "Alex",
            "Andy",
            "Gene",
            "Hugo",
            "Jacky",
            "Lee",
            "Mario",
            "Mike",
            "adam",
            "benjamin",
            "boris",
            "john",
        ]
    ),
    "dev": ["m3", "Michael"],
    "test": ["miguel", "paul", "robert", "victor"],
}
MAX_SECONDS = 2.95

TRANSCRIBE = "Transcribe."
WHO = "Is the speaker a man or a woman?"
WHAT = "What kind of sound is this?"
MUSIC = "Is there music?"

NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
HELD_OUT_SUMS = {
    "dev": [(6, 3), (4, 1), (2, 6)],
    "test": [(5, 2), (1, 6), (4, 3), (2, 3), (6, 5)],
}
_ROOMS = ["kitchen", "bedroom", "garage", "garden", "office"]
_THINGS = ["light", "fan", "radio", "heater", "lamp"]
_MUSIC = ["jazz", "rock", "piano", "folk"]
_NAMES = ["anna", "peter", "maria", "david"]
_COLOURS = ["red", "blue", "green", "black", "white"]
_ANIMALS = ["cat", "dog", "bird", "horse", "rabbit"]
_DOES = ["sleeps", "runs", "waits", "sits"]
_WHERE = ["under", "behind", "near", "on"]
_PLACES = ["table", "chair", "tree", "house", "river"]

OPPOSITES = dict(
    pair.split("-")
    for pair in [
        "hot-cold",
        "big-small",
        "old-new",
        "fast-slow",
        "hard-soft",
        "day-night",
        "left-right",
        "open-closed",
        "happy-sad",
        "early-late",
        "wet-dry",
        "full-empty",
    ]
)
FACTS = {
    "color is the sky": "the sky is blue",
    "color is grass": "grass is green",
    "color is snow": "snow is white",
    "color is coal": "coal is black",
    "day comes after monday": "tuesday comes after monday",
    "day comes after friday": "saturday comes after friday",
    "animal says meow": "the cat says meow",
    "animal says woof": "the dog says woof",
}


def commands() -> Iterator[str]:
    """Sentences to transcribe."""
    for state, thing, room in itertools.product(("on", "off"), _THINGS, _ROOMS):
        yield f"turn {state} the {thing} in the {room}"
    for kind, room in itertools.product(_MUSIC, _ROOMS):
        yield f"play some {kind} in the {room}"
    for name, room in itertools.product(_NAMES, _ROOMS):
        yield f"call {name} from the {room}"
    for verb, thing, number in itertools.product(
        ("set", "stop"), ("timer", "alarm"), NUMBERS[1:13]
    ):
        yield f"{verb} the {thing} for {number} minutes"
    for colour, animal, does, where, place in itertools.product(
        _COLOURS, _ANIMALS, _DOES, _WHERE, _PLACES
    ):
        yield f"the {colour} {animal} {does} {where} the {place}"


def questions() -> Iterator[tuple[str, str, str]]:
    """Spoken questions: (what is asked, however it is worded; the words; the answer)."""
    for a, b in itertools.product(range(1, 7), repeat=2):
        answer = f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]}"
        for words in ("what is {} plus {}", "how much is {} plus {}", "tell me {} plus {}"):
            yield f"{a}+{b}", words.format(NUMBERS[a], NUMBERS[b]), answer
    for word, opposite in [*OPPOSITES.items(), *((b, a) for a, b in OPPOSITES.items())]:
        answer = f"the opposite of {word} is {opposite}"
        for words in (
            "what is the opposite of {}",
            "tell me the opposite of {}",
            "the opposite of {} please",
        ):
            yield f"opposite {word} {words}", words.format(word), answer
    for fact, answer in FACTS.items():
        for words in ("what {}", "tell me what {}", "please tell me what {}"):
            yield f"{fact} {words}", words.format(fact), answer


def split_of(text: str, dev: float = 0.05, test: float = 0.15) -> str:
    """The split of a sentence, or of a sum like "2+5": always the same one."""
    if "+" in text:
        pair = tuple(map(int, text.split("+")))
        return next((s for s, pairs in HELD_OUT_SUMS.items() if pair in pairs), "train")
    draw = int.from_bytes(hashlib.sha256(f"split {text}".encode()).digest()[:4], "big") / 2**32
    return "test" if draw < test else "dev" if draw < test + dev else "train"


class Clip(NamedTuple):
    """A sound to be made and every record it is used in.

    Attributes:
        path: relative to the corpus.
        text: what is said, or None for a sound.
        voice: who says it, or None.
        kind: kind of sound, "speech" for speech.
        seed: of a sound.
        records: (task, messages' user text or None for voice chat, answer).
    """

    path: str
    text: str | None
    voice: Voice | None
    kind: str
    seed: int
    records: list[tuple[str, str | None, str]]


SIZES = {
    # sentences, fragments, spoken questions, sounds; share of sentences that are also asked about
    "train": (3000, 8000, 3500, 800, 0.3),
    "dev": (200, 0, 200, 120, 1.0),
    "test": (250, 0, 250, 150, 1.0),
}


def plan(split: str, seed: int, scale: float = 1.0) -> list[Clip]:
    """The clips of a split. `scale` shrinks it, for tests."""
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    sentences, fragments, asked, sounds, share = SIZES[split]
    sentences, fragments, asked, sounds = (
        int(n * scale) for n in (sentences, fragments, asked, sounds)
    )
    pool = [s for s in commands() if split_of(s) == split]
    simple = [s for s in pool if not s.startswith("the ")]
    words = sorted({w for s in (*commands(), *(q for _, q, _ in questions())) for w in s.split()})
    # Of a sum, the numbers decide the split; of other questions, the wording does too, so that
    # test asks of known things in unheard words.
    spoken = [(w, a) for key, w, a in questions() if split_of(key) == split]
    sums = [q for q in spoken if " plus " in q[0]]
    others = [q for q in spoken if " plus " not in q[0]]

    def voice() -> tuple[Voice, str]:
        woman = bool(rng.integers(2))
        name = str(rng.choice((WOMEN if woman else MEN)[split]))
        how = Voice(f"en-us+{name}", int(rng.integers(175, 216)), int(rng.integers(42, 59)))
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
        if rng.random() < share:
            about = [("analyse", WHO, who), ("analyse", WHAT, "speech"), ("analyse", MUSIC, "no")]
            records.append(about[rng.choice(3, p=(0.7, 0.15, 0.15))])
        add(text, "speech", records, how)
    for _ in range(fragments):
        text = " ".join(rng.choice(words, size=rng.integers(1, 4)))
        add(text, "speech", [("transcribe", TRANSCRIBE, text)], voice()[0])
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
    """Makes all splits: sound files, a manifest for each split and each task of dev and test, and
    the text that the tokenizer learns from. Yields a word on each split as it is done."""
    directory = Path(directory)
    for split in SPLITS:
        clips = plan(split, seed, scale)
        (directory / split).mkdir(parents=True, exist_ok=True)
        jobs = [(directory, clips[i::64]) for i in range(64)]
        # Processes are spawned: JAX's threads do not survive a fork.
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            seconds = sum(pool.imap_unordered(_write_clips, jobs))
        rows = [
            (task, _row(clip, question, answer))
            for clip in clips
            for task, question, answer in clip.records
        ]
        _write_manifest(directory / f"{split}.jsonl", (row for _, row in rows))
        if split != "train":
            for task in ("transcribe", "chat", "analyse"):
                _write_manifest(
                    directory / f"{split}_{task}.jsonl", (r for t, r in rows if t == task)
                )
        yield f"{split}: {len(clips):,} clips, {seconds / 3600:.2f} hours, {len(rows):,} records"
    lines = [
        line
        for row in _read(directory / "train.jsonl")
        for line in render(row["messages"]).text.split("\n")
        if line
    ]
    (directory / "text.txt").write_text("\n".join(lines) + "\n")


def _row(clip: Clip, question: str | None, answer: str) -> dict[str, Any]:
    content = [{"type": "audio", "audio": clip.path}]
    if question:
        content.append({"type": "text", "text": question})
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
    }


def _write_clips(job: tuple[Path, list[Clip]]) -> float:
    import soundfile

    directory, clips = job
    total = 0.0
    for clip in clips:
        rng = np.random.default_rng(clip.seed)
        if clip.text is None:
            wave = make_sound(clip.kind, rng, rng.uniform(1.0, 2.8))
        else:
            assert clip.voice is not None
            wave = speak(clip.text, clip.voice)
            wave = wave * rng.uniform(0.2, 0.9) / np.abs(wave).max()
            silence = np.zeros(int(rng.uniform(0.02, 0.12) * SAMPLE_RATE), np.float32)
            wave = np.concatenate([silence, wave, silence])[: int(MAX_SECONDS * SAMPLE_RATE)]
            wave = wave + rng.uniform(1e-4, 2e-3) * rng.standard_normal(wave.size)
        soundfile.write(directory / clip.path, wave, SAMPLE_RATE, subtype="PCM_16")
        total += wave.size / SAMPLE_RATE
    return total


def _write_manifest(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
