"""Directories of speech corpora: what is read, and what is said of one that is not complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qa_jax.errors import InputError
from qa_jax.evaluate import load_benchmark
from qa_jax.evaluate.layouts import read_items
from tests.evaluate.layouts.data import CHINESE, WRITERS, Clips

Data = Callable[[str], str]


@pytest.fixture
def broken(clips: Clips, tmp_path: Path) -> Callable[[str], Path]:
    """A directory of a benchmark's data that a test may damage."""

    def made(name: str) -> Path:
        WRITERS[name](tmp_path, clips)
        return tmp_path

    return made


def test_librispeech(benchmark_data: Data) -> None:
    recipe = load_benchmark("librispeech")
    items = read_items(recipe, "test-clean", benchmark_data("librispeech"))
    assert [item.id for item in items] == ["121-70-0000", "121-70-0001", "61-70-0000", "61-70-0001"]
    assert items[0].reference == "THE WHITE RABBIT SLEEPS ON THE RIVER"
    assert items[0].audio[0].endswith("test-clean/121/70/121-70-0000.flac")
    # As the archive unpacks, with a directory around it.
    data = Path(benchmark_data("librispeech"))
    around = data.parent / "around"
    around.mkdir()
    (around / "LibriSpeech").symlink_to(data)
    assert [i.id for i in read_items(recipe, "test-clean", str(around))] == [i.id for i in items]


def test_librispeech_that_is_not_there(tmp_path: Path, broken: Callable[[str], Path]) -> None:
    recipe = load_benchmark("librispeech")
    remedy = "has no test-clean or LibriSpeech/test-clean; give the directory of LibriSpeech"
    with pytest.raises(InputError, match=remedy):
        read_items(recipe, "test-clean", str(tmp_path))
    root = broken("librispeech")
    for file in (root / "dev-clean").rglob("*.txt"):
        file.unlink()
    with pytest.raises(InputError, match=r"contains no SPEAKER/CHAPTER/\*\.trans\.txt"):
        read_items(recipe, "dev-clean", str(root))
    (file, _) = sorted((root / "dev-other").rglob("*.txt"))
    file.write_text(file.read_text() + "121-70-0009\n")
    with pytest.raises(InputError, match=r"121-70\.trans\.txt:3: has a name and no text"):
        read_items(recipe, "dev-other", str(root))


def test_aishell2(benchmark_data: Data, broken: Callable[[str], Path]) -> None:
    recipe = load_benchmark("aishell2")
    (first, *_) = read_items(recipe, "iOS", benchmark_data("aishell2"))
    assert (first.id, first.reference) == ("IT0011W0000", CHINESE[0])
    assert first.fields["speaker"] == "T0055"
    root = broken("aishell2")
    (root / "Mic" / "test" / "trans.txt").write_text("IT0011W0000\t好\n")
    with pytest.raises(InputError, match=r"wav\.scp: IT0011W0001 is not in trans\.txt"):
        read_items(recipe, "Mic", str(root))


def test_common_voice_keeps_quotes(benchmark_data: Data) -> None:
    recipe = load_benchmark("common_voice_15")
    items = read_items(recipe, "fr", benchmark_data("common_voice_15"))
    assert [item.reference for item in items] == ["L'été, c'est là.", 'Il dit "oui"']
    assert recipe.subsets["zh"]["path"] == "zh-CN"
    assert items[0].fields["speaker"] == "abababababab"


def test_fleurs_has_several_readers_of_a_sentence(
    benchmark_data: Data, broken: Callable[[str], Path]
) -> None:
    recipe = load_benchmark("fleurs")
    items = read_items(recipe, "zh", benchmark_data("fleurs"))
    assert [item.id for item in items] == ["100.wav", "101.wav", "102.wav", "103.wav"]
    assert [item.raw["id"] for item in items] == ["1", "1", "2", "2"]
    root = broken("fleurs")
    (root / "cmn_hans_cn" / "test.tsv").write_text("1\tx.wav\n")
    with pytest.raises(InputError, match=r"test\.tsv:1: has 2 columns"):
        read_items(recipe, "zh", str(root))


def test_covost2(benchmark_data: Data, broken: Callable[[str], Path]) -> None:
    recipe = load_benchmark("covost2")
    items = read_items(recipe, "en-zh", benchmark_data("covost2"))
    assert [item.reference for item in items] == list(CHINESE[:3])
    root = broken("covost2")
    table = root / "en" / "covost_v2.en_de.test.tsv"
    table.write_text(table.read_text().replace("translation", "target"))
    with pytest.raises(InputError, match="has no column 'translation'; there are path, sentence"):
        read_items(recipe, "en-de", str(root))
    table.write_text("path\tsentence\ttranslation\tclient_id\na.mp3\tx\n")
    with pytest.raises(InputError, match="en_de.test.tsv:2: has another number of columns"):
        read_items(recipe, "en-de", str(root))
