"""What a layout reads: items to be asked about."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from typing import NamedTuple

from qa_jax.config import JsonDict
from qa_jax.data.audio import AudioSource
from qa_jax.errors import InputError
from qa_jax.paths import AnyPath, as_path, read_bytes


class Item(NamedTuple):
    """An item of a benchmark.

    Attributes:
        id: its name in the data, unique in its subset.
        audio: its clips.
        reference: the right answer.
        fields: what its prompt, metric and report use besides: "question", "choices", "speaker".
        raw: the data's own record, for its own script.
    """

    id: str
    audio: list[AudioSource]
    reference: str
    fields: JsonDict
    raw: JsonDict


def find(root: str, *names: str, what: str) -> AnyPath:
    """The first of some files or directories that is below the data's directory; raises InputError
    that says what should be there."""
    for name in names:
        path = as_path(root) / name
        if path.exists():
            return path
    raise InputError(root, f"has no {' or '.join(names)}", f"give the directory of {what}")


def read_csv(path: AnyPath, delimiter: str = ",") -> Iterator[JsonDict]:
    """The rows of a table with a header. Quotes mean nothing where tabs separate."""
    csv.field_size_limit(sys.maxsize)
    text = io.StringIO(_text(path), newline="")
    reader = (
        csv.DictReader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        if delimiter == "\t"
        else csv.DictReader(text, delimiter=delimiter)
    )
    for number, row in enumerate(reader, start=2):
        if None in row or None in row.values():
            raise InputError(f"{path}:{number}", "has another number of columns than the header")
        yield dict(row)


def read_records(path: AnyPath) -> list[JsonDict]:
    """The objects of a JSON list, or of JSON lines."""
    text = _text(path)
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
        else:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise InputError(path, f"not JSON ({error})") from None
    if not all(isinstance(row, dict) for row in found):
        raise InputError(path, "contains other values than objects")
    return list(found)


def column(row: JsonDict, name: str, source: object) -> str:
    """A column's value as text; raises InputError naming those that there are."""
    if name not in row:
        raise InputError(source, f"has no column {name!r}", f"there are {', '.join(map(str, row))}")
    return "" if row[name] is None else str(row[name])


def _text(path: AnyPath) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise InputError(path, f"not readable ({error})", "check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(path, f"not UTF-8 ({error})") from None
