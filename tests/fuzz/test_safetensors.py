"""Mutated safetensors headers: what the safetensors library refuses is refused here, by name."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qa_jax.errors import InputError
from qa_jax.hf import SafetensorsDir
from tests.fuzz.test_manifest import CASES

NUMBERS = st.sampled_from([-8, -1, 0, 1, 2, 7, 8, 1.5, 2**40, 2**63, 2**64, "8", None, []])


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("safetensors") / "model.safetensors"
    rng = np.random.default_rng(0)
    shapes = {"a": (2, 3), "b": (4,), "c": (), "d": (3, 2, 2)}
    save_file({k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}, path)
    return path


def mutate(header: dict[str, Any], rng: random.Random, number: Any) -> None:
    entry = header[rng.choice([k for k in header if k != "__metadata__"])]
    kind = rng.randrange(6)
    if kind == 0:
        entry["data_offsets"][rng.randrange(2)] = number
    elif kind == 1:
        shape = entry["shape"]
        shape.insert(rng.randint(0, len(shape)), number)
    elif kind == 2 and entry["shape"]:
        entry["shape"][rng.randrange(len(entry["shape"]))] = number
    elif kind == 3:
        del entry[rng.choice(["dtype", "shape", "data_offsets"])]
    elif kind == 4:
        entry["dtype"] = rng.choice(["F32", "BF16", "I64", "F8_E4M3", "X", number])
    else:
        other = header[rng.choice([k for k in header if k != "__metadata__"])]
        entry["data_offsets"] = list(other["data_offsets"])


@CASES
@given(seed=st.integers(0, 2**32), number=NUMBERS)
def test_mutated_headers(valid: Path, seed: int, number: Any) -> None:
    rng = random.Random(seed)
    data = valid.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.randint(1, 2)):
        try:
            mutate(header, rng, number)
        except (KeyError, TypeError, IndexError):  # of what an earlier mutation removed
            continue
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = text[: rng.randrange(len(text))]
    size = rng.choice([len(text)] * 8 + [len(text) + 5, 2**50])
    folder = valid.parent / "mutated"
    folder.mkdir(exist_ok=True)
    path = folder / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + text + data[8 + length :])
    try:
        with safe_open(path, framework="numpy") as opened:
            names = set(opened.keys())
    except (SafetensorError, ValueError, OverflowError):
        names = None
    try:
        found = SafetensorsDir(folder, rename=str)
    except InputError as error:
        assert str(error).startswith(str(folder))
        return
    assert names is not None, "refused by the library, accepted here"
    assert set(found) == names
    for name in found:
        found.read(name)


def test_an_index_names_no_files_elsewhere(valid: Path, tmp_path: Path) -> None:
    for name in ("../model.safetensors", str(valid)):
        index = {"weight_map": {"a": name}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(InputError, match="not a file of this directory"):
            SafetensorsDir(tmp_path)
