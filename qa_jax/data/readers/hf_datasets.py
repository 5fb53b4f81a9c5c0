"""Hugging Face datasets: Parquet files with audio columns, here or on the hub; needs `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from qa_jax.config import JsonDict
from qa_jax.data.readers.base import TEXT_NAMES, Line, from_columns
from qa_jax.data.stored import StoredClip
from qa_jax.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

_HUB = re.compile(r"hf://(?P<name>[^:@]+)(:(?P<config>[^@]+))?(@(?P<split>.+))?")


def is_hf_dataset(path: str) -> bool:
    """Whether this names one on the hub, or is a Parquet file."""
    return path.startswith("hf://") or path.endswith(".parquet")


class RowClip(StoredClip):
    """A clip in a row.

    Args:
        path: the dataset's.
        dataset: its audio columns, not decoded.
        row: which.
        column: which.
    """

    def __init__(self, path: str, dataset: Dataset, row: int, column: str) -> None:
        self.path, self._dataset, self.row, self.column = path, dataset, row, column

    def read(self) -> bytes:
        cell = self._dataset[self.row][self.column]
        if cell["bytes"] is not None:
            return cell["bytes"]
        try:
            return Path(cell["path"]).read_bytes()
        except OSError as error:
            raise InputError(str(self), f"not readable ({error})", "check the dataset") from None

    def __str__(self) -> str:
        return f"{self.path}:{self.row + 1}/{self.column}"


def read_hf_dataset(path: str) -> Iterator[Line]:
    """The rows of a dataset.

    A row has one audio column or several, and its text in a column that is called so, or
    "messages". Raises InputError naming the columns if there is no such one.
    """
    dataset = _load(path)
    if "messages" not in dataset.features and not set(TEXT_NAMES) & set(dataset.features):
        raise InputError(
            path,
            f"no column with a text; there are {', '.join(dataset.features)}",
            f"name it {', '.join(TEXT_NAMES)}, or messages",
        )
    for i, (fields, clips) in enumerate(_rows(path, dataset)):
        yield Line(from_columns(fields, list(clips)), f"{path}:{i + 1}", "")


def read_rows(path: str) -> Iterator[tuple[JsonDict, list[RowClip]]]:
    """The rows of a dataset as they are: their fields but for audio columns, and their clips."""
    return _rows(path, _load(path))


def _rows(path: str, dataset: Dataset) -> Iterator[tuple[JsonDict, list[RowClip]]]:
    features = dataset.features
    clips = [name for name, feature in features.items() if type(feature).__name__ == "Audio"]
    rest = dataset.remove_columns(clips)
    audio = _not_decoded(dataset.select_columns(clips), clips)
    for i in range(len(dataset)):
        found = [RowClip(path, audio, i, column) for column in clips]
        fields = rest[i] if rest.column_names else {}
        yield fields, [c for c in found if audio.data.column(c.column)[i].is_valid]


def _not_decoded(dataset: Dataset, columns: list[str]) -> Dataset:
    from datasets import Audio

    for column in columns:
        dataset = dataset.cast_column(column, Audio(decode=False))
    return dataset


def _load(path: str) -> Dataset:
    try:
        import datasets
    except ImportError:
        raise InputError(path, "needs datasets", 'pip install "qa_jax[datasets]"') from None
    datasets.disable_progress_bars()
    try:
        match = _HUB.fullmatch(path)
        if match is not None:
            return datasets.load_dataset(
                match["name"], match["config"], split=match["split"] or "train"
            )
        if (Path(path) / "state.json").is_file():
            return datasets.load_from_disk(path)
        files = [path] if path.endswith(".parquet") else _parquet_files(path)
        return datasets.load_dataset("parquet", data_files=files, split="train")
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise InputError(path, f"not readable as a dataset ({text})", "check the name") from None


def _parquet_files(path: str) -> list[str]:
    files = sorted(str(p) for p in Path(path).rglob("*.parquet"))
    if not files:
        raise InputError(
            path, "a directory without Parquet files", "name a manifest or a dataset's directory"
        )
    return files
