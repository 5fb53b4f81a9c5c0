"""The demo's texts: sentences, and questions with their answers, in three splits.

No sentence or question of dev or test is in training, and none of their sums is in training in any
wording or order, spoken or written.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

SPLITS = ("train", "dev", "test")
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
# Held out in both orders; training keeps other sums of each number and of each result.
HELD_OUT_SUMS = {
    "dev": [{3, 6}, {2, 7}, {4, 9}],
    "test": [{2, 5}, {3, 8}, {4, 6}, {3, 12}, {2, 11}],
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

_PAIRS = """
hot-cold big-small old-new fast-slow hard-soft day-night left-right open-closed happy-sad wet-dry
full-empty up-down high-low long-short rich-poor clean-dirty strong-weak first-last loud-quiet
true-false black-white easy-difficult
"""
OPPOSITES = dict(pair.split("-") for pair in _PAIRS.split())
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
FACTS = {
    "color is the sky": "the sky is blue",
    "color is grass": "grass is green",
    "color is snow": "snow is white",
    "color is coal": "coal is black",
    "color is a lemon": "a lemon is yellow",
    "animal says meow": "the cat says meow",
    "animal says woof": "the dog says woof",
    "animal says moo": "the cow says moo",
    "animal gives wool": "the sheep gives wool",
    **{f"day comes after {a}": f"{b} comes after {a}" for a, b in itertools.pairwise(_DAYS)},
}
SUM_WORDINGS = (
    "what is {} plus {}",
    "how much is {} plus {}",
    "tell me {} plus {}",
    "{} plus {} is what",
    "please add {} and {}",
)
OPPOSITE_WORDINGS = (
    "what is the opposite of {}",
    "tell me the opposite of {}",
    "the opposite of {} please",
    "say the opposite of {}",
    "do you know the opposite of {}",
    "give me the opposite of {}",
    "which word is the opposite of {}",
    "and the opposite of {}",
)
FACT_WORDINGS = (
    "what {}",
    "tell me what {}",
    "please tell me what {}",
    "do you know what {}",
    "say what {}",
)


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
    """Spoken questions: (key, the same for every wording of a sum; the words; the answer)."""
    for a, b in itertools.product(range(1, 16), range(1, 5)):
        # Answers that count on from the first number generalise to held-out sums.
        counting = " ".join(f"{NUMBERS[i]} {NUMBERS[a + i]}" for i in range(1, b + 1))
        answer = f"{NUMBERS[a]} plus {NUMBERS[b]} count {counting} so it is {NUMBERS[a + b]}"
        for words in SUM_WORDINGS:
            yield f"{a}+{b}", words.format(NUMBERS[a], NUMBERS[b]), answer
    for word, opposite in OPPOSITES.items():
        for words in OPPOSITE_WORDINGS:
            answer = f"the opposite of {word} is {opposite}"
            yield f"opposite {word} {words}", words.format(word), answer
    for fact, answer in FACTS.items():
        for words in FACT_WORDINGS:
            yield f"{fact} {words}", words.format(fact), answer


def split_of(text: str, dev: float = 0.05, test: float = 0.15) -> str:
    """The split of a sentence, or of a sum like "2+5", by its hash."""
    if "+" in text:
        pair = set(map(int, text.split("+")))
        return next((s for s, pairs in HELD_OUT_SUMS.items() if pair in pairs), "train")
    draw = int.from_bytes(hashlib.sha256(f"part {text}".encode()).digest()[:4], "big") / 2**32
    return "test" if draw < test else "dev" if draw < test + dev else "train"


def spoken_questions(split: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The (question, answer) pairs of a split: sums, and all others.

    A sum's split follows from its numbers, that of another question from its wording as well, so
    that test asks about trained facts in held-out wordings.
    """
    pairs = [(words, answer) for key, words, answer in questions() if split_of(key) == split]
    sums = [q for q in pairs if " plus " in q[1]]
    return sums, [q for q in pairs if " plus " not in q[1]]
