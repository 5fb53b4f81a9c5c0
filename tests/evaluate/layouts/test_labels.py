"""Directories of clips with a label each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qa_jax.errors import InputError
from qa_jax.evaluate import load_benchmark
from qa_jax.evaluate.layouts import read_items
from tests.evaluate.layouts.data import Clips, meld, vocalsound

Data = Callable[[str], str]


def test_meld(benchmark_data: Data) -> None:
    items = read_items(load_benchmark("meld"), "test", benchmark_data("meld"))
    assert [item.id for item in items] == ["dia0_utt0", "dia0_utt1", "dia1_utt0", "dia1_utt1"]
    assert [item.reference for item in items] == ["neutral", "joy", "anger", "neutral"]
    assert items[0].fields == {"speaker": "Rachel"}


def test_melds_films_have_to_be_converted(clips: Clips, tmp_path: Path) -> None:
    meld(tmp_path, clips)
    directory = tmp_path / "output_repeated_splits_test"
    (directory / "dia1_utt0.wav").rename(directory / "dia1_utt0.mp4")
    with pytest.raises(InputError, match=r"dia1_utt0\.mp4: is a film.*ffmpeg -i"):
        read_items(load_benchmark("meld"), "test", str(tmp_path))


def test_vocalsound(benchmark_data: Data, clips: Clips, tmp_path: Path) -> None:
    recipe = load_benchmark("vocalsound")
    items = read_items(recipe, "test", benchmark_data("vocalsound"))
    references = ["Laughter", "Sigh", "Cough", "Throat clearing"]
    assert [item.reference for item in items] == references
    assert items[3].id == "f2644_0_throatclearing.wav" and items[3].fields["speaker"] == "f2644"
    vocalsound(tmp_path, clips)
    labels = tmp_path / "class_labels_indices_vs.csv"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="throatclearing.wav has the label /m/0dl9sf8"):
        read_items(recipe, "test", str(tmp_path))
