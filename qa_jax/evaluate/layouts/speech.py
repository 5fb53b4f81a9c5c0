"""Directories of speech corpora, as they are after they are unpacked."""

from __future__ import annotations

from collections.abc import Iterator

from qa_jax.config import JsonDict
from qa_jax.errors import InputError
from qa_jax.evaluate.layouts.base import Item, column, find, read_csv
from qa_jax.paths import AnyPath, as_path, read_bytes


def librispeech(root: str, subset: JsonDict) -> Iterator[Item]:
    """SUBSET/SPEAKER/CHAPTER/: *.trans.txt, and a .flac for each of its lines."""
    path = subset["path"]
    directory = find(root, path, f"LibriSpeech/{path}", what="LibriSpeech")
    files = sorted(directory.glob("*/*/*.trans.txt"))
    if not files:
        raise InputError(directory, "contains no SPEAKER/CHAPTER/*.trans.txt", "unpack it again")
    for file in files:
        for name, text in _lines(file, " "):
            clip = str(file.parent / f"{name}.flac")
            fields = {"speaker": name.split("-")[0]}
            yield Item(name, [clip], text, fields, {"id": name, "text": text})


def aishell2(root: str, subset: JsonDict) -> Iterator[Item]:
    """DEVICE/test/: trans.txt, wav.scp and the .wav files that it names."""
    directory = find(root, subset["path"], what="AISHELL-2's test sets")
    transcripts = dict(_lines(find(str(directory), "trans.txt", what="a test set"), None))
    scp = find(str(directory), "wav.scp", what="a test set")
    for name, file in _lines(scp, None):
        if name not in transcripts:
            raise InputError(scp, f"{name} is not in trans.txt", "unpack the test set again")
        fields = {"speaker": file.split("/")[-2] if "/" in file else ""}
        row = {"id": name, "text": transcripts[name]}
        yield Item(name, [str(directory / file)], transcripts[name], fields, row)


def common_voice(root: str, subset: JsonDict) -> Iterator[Item]:
    """LANGUAGE/: test.tsv and clips/."""
    path = subset["path"]
    directory = find(root, path, f"cv-corpus-15.0-2023-09-08/{path}", what="Common Voice")
    table = find(str(directory), f"{subset['split']}.tsv", what="a language of Common Voice")
    yield from _common_voice_items(directory, table, "sentence")


_FLEURS = ("id", "file_name", "raw_transcription", "transcription", "chars", "num_samples",
           "gender")  # fmt: skip


def fleurs(root: str, subset: JsonDict) -> Iterator[Item]:
    """LANGUAGE/: test.tsv, which has no header, and audio/test/."""
    path, split = subset["path"], subset["split"]
    directory = find(root, path, f"data/{path}", what="FLEURS")
    table = find(str(directory), f"{split}.tsv", what="a language of FLEURS")
    for number, (first, rest) in enumerate(_lines(table, "\t"), start=1):
        values = [first, *rest.split("\t")]
        if len(values) < 4:
            raise InputError(f"{table}:{number}", f"has {len(values)} columns", "download it again")
        row = dict(zip(_FLEURS, values, strict=False))
        # A sentence is read by several speakers, who share its id.
        name = row["file_name"]
        clip = str(directory / "audio" / split / name)
        yield Item(name, [clip], row["raw_transcription"], {"speaker": row.get("gender", "")}, row)


def covost2(root: str, subset: JsonDict) -> Iterator[Item]:
    """LANGUAGE/: covost_v2.SOURCE_TARGET.test.tsv, as CoVoST's script makes it, and clips/."""
    source, target = subset["source"], subset["target"]
    directory = find(root, source, what="Common Voice 4 by language")
    table = find(str(directory), f"covost_v2.{source}_{target}.test.tsv", what="CoVoST 2's tables")
    yield from _common_voice_items(directory, table, "translation")


def _common_voice_items(directory: AnyPath, table: AnyPath, text: str) -> Iterator[Item]:
    """The rows of a table in Common Voice's form, whose clips are in clips/."""
    for row in read_csv(table, "\t"):
        name = column(row, "path", table)
        clip, speaker = str(directory / "clips" / name), row.get("client_id", "")[:12]
        yield Item(name, [clip], column(row, text, table), {"speaker": speaker}, row)


def _lines(path: AnyPath, separator: str | None) -> Iterator[tuple[str, str]]:
    """The first word of each line, and the rest of it."""
    for number, line in enumerate(read_bytes(as_path(path)).decode().splitlines(), start=1):
        first, *rest = line.split(separator, 1)
        if line.strip() and not rest:
            raise InputError(f"{path}:{number}", "has a name and no text", "download it again")
        if line.strip():
            yield first, rest[0].rstrip()
