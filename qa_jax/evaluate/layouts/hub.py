"""Data sets of the Hugging Face hub, or copies of them as Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qa_jax.config import JsonDict
from qa_jax.data.readers.hf_datasets import read_rows
from qa_jax.errors import InputError
from qa_jax.evaluate.layouts.base import Item, column


def from_hub(name: str, columns: Mapping[str, str]) -> Iterator[Item]:
    """The rows of a data set.

    Args:
        name: "OWNER/NAME:CONFIG@SPLIT" on the hub, or a directory of Parquet files.
        columns: names of the columns that are an item's "id", "reference" and other fields.
    """
    own_id = columns.get("id", "id")
    for number, (row, clips) in enumerate(read_rows(name)):
        source = f"{name}:{number + 1}"
        if not clips:
            raise InputError(source, "has no clip", "give data with an Audio column")
        reference = columns.get("reference", "")
        fields: JsonDict = {
            field: column(row, theirs, source)
            for field, theirs in columns.items()
            if field not in ("id", "reference") and theirs in row
        }
        text = column(row, reference, source) if reference in row else ""
        # Rows of several speakers may share an id.
        name_of = f"{number}-{row[own_id]}" if own_id in row else str(number)
        yield Item(name_of, list(clips), text, fields, row)
