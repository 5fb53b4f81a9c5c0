"""Directories of clips with a label each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qa_jax.config import JsonDict
from qa_jax.config.io import read_json
from qa_jax.errors import InputError
from qa_jax.evaluate.layouts.base import Item, column, find, read_csv
from qa_jax.paths import AnyPath


def meld(root: str, subset: JsonDict) -> Iterator[Item]:
    """test_sent_emo.csv, and diaD_uttU.wav (or .flac, .mp3), taken from the .mp4 of that name."""
    table = find(root, subset["table"], what="MELD.Raw")
    directory = find(root, subset["clips"], "test", what="MELD.Raw")
    for row in read_csv(table):
        name = f"dia{column(row, 'Dialogue_ID', table)}_utt{column(row, 'Utterance_ID', table)}"
        fields = {"speaker": row.get("Speaker", "")}
        clip = _sound_of(directory, name)
        yield Item(name, [clip], column(row, "Emotion", table), fields, row)


def _sound_of(directory: AnyPath, name: str) -> str:
    for suffix in (".wav", ".flac", ".mp3"):
        if (directory / f"{name}{suffix}").exists():
            return str(directory / f"{name}{suffix}")
    if (directory / f"{name}.mp4").exists():
        raise InputError(
            directory / f"{name}.mp4",
            "is a film, and its sound is needed",
            "for f in *.mp4; do ffmpeg -i $f -vn -ar 16000 -ac 1 ${f%.mp4}.wav; done",
        )
    return str(directory / f"{name}.wav")  # told when it is read


def vocalsound(root: str, subset: JsonDict) -> Iterator[Item]:
    """datafiles/te.json, class_labels_indices_vs.csv and audio_16k/, as they are released."""
    table = find(root, subset["table"], what="vs_release_16k")
    labels_file = find(root, subset["labels"], f"datafiles/{subset['labels']}", what="VocalSound")
    labels = {row["mid"]: row["display_name"] for row in read_csv(labels_file)}
    directory = find(root, subset["clips"], "data_16k", what="vs_release_16k")
    for row in read_json(table).get("data", []):
        name = Path(column(row, "wav", table)).name
        label = column(row, "labels", table)
        if label not in labels:
            raise InputError(table, f"{name} has the label {label}", f"it is not in {labels_file}")
        fields = {"speaker": name.split("_")[0]}
        yield Item(name, [str(directory / name)], labels[label], fields, row)
