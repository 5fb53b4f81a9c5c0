"""Mutated manifests end as records or as errors that name the line: never as a traceback."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qa_jax.data import Processor
from qa_jax.data.examples import measure
from qa_jax.data.manifest import read_manifest
from qa_jax.errors import InputError

CASES = settings(
    max_examples=2000,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["<audio>", "<|AUDIO|>", "user", "assistant", "a" * 5000, "\u2028", "x\0y"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "audio", "text", "type"]), inner)
    ),
    max_leaves=6,
)


def rows(sounds: Path) -> list[dict[str, Any]]:
    clip, sound = str(sounds / "0.wav"), {"type": "audio", "audio": str(sounds / "1.wav")}
    user = {"role": "user", "content": [sound, {"type": "text", "text": "who"}]}
    answer = {"role": "assistant", "content": "a man"}
    return [
        {"audio": clip, "prompt": "Transcribe:", "text": "good morning"},
        {"messages": [user, answer]},
        {"messages": [user], "chosen": "a man", "rejected": "a woman"},
        {"messages": [{"role": "user", "content": "<audio>who"}, answer], "audios": [clip]},
        {"audio": [clip, clip], "prompt": "", "chosen": "x", "rejected": [answer]},
    ]


def mutate(value: Any, rng: random.Random, new: Any) -> Any:
    """The value with one part, at any depth, replaced, removed, or given another name."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.2:
        return new
    value = copy.copy(value)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    kind = rng.random()
    if kind < 0.7:
        value[key] = mutate(value[key], rng, new)
    elif isinstance(value, dict) and kind < 0.85:
        value[rng.choice(["audios", "messages", "chosen", "prompt", "text"])] = value.pop(key)
    else:
        del value[key]
    return value


@CASES
@given(seed=st.integers(0, 2**32), new=VALUES)
def test_mutated_records(
    audio_files: Path, processor: Processor, tmp_path_factory: Any, seed: int, new: Any
) -> None:
    rng = random.Random(seed)
    row = mutate(rng.choice(rows(audio_files)), rng, new)
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=rng.random() < 0.5), "utf-8", "surrogatepass")
    try:
        for record in read_manifest(path):
            measure(record, processor, "error", len(record.completions()))
    except InputError as error:
        assert str(error).startswith(str(path)), error
        assert error.cause and "Traceback" not in error.cause


@CASES
@given(content=st.binary(max_size=200))
def test_random_bytes(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    path.write_bytes(content)
    try:
        read_manifest(path)
    except InputError as error:
        assert str(error).startswith(str(path))


def test_line_separators_inside_strings(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text('{"text": "one\u2028two"}\n{"text": "three"}\n', encoding="utf-8")
    assert [r.raw["text"] for r in read_manifest(path)] == ["one\u2028two", "three"]
