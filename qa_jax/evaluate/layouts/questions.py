"""Directories of questions about clips: AIR-Bench, MMAU, MMAR, MMAU-Pro, OpenAudioBench."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from qa_jax.config import JsonDict
from qa_jax.errors import InputError
from qa_jax.evaluate.layouts.base import Item, column, find, read_csv, read_records
from qa_jax.evaluate.metrics.choices import LETTERS
from qa_jax.paths import AnyPath


def air_bench(root: str, subset: JsonDict) -> Iterator[Item]:
    """TRACK/: TRACK_meta.json, and TASK_DATASET/ with the clips.

    Of the Foundation track a subset is TASK_DATASET; of the Chat track, its tasks.
    """
    track = subset["track"]
    table = find(root, f"{track}/{track}_meta.json", what="AIR-Bench-Dataset")
    for row in read_records(table):
        task, dataset = column(row, "task_name", table), column(row, "dataset_name", table)
        if track == "Chat" and task not in subset["tasks"]:
            continue
        if track == "Foundation" and f"{task}_{dataset}" != subset["name"]:
            continue
        path = column(row, "path", table)
        if task == "Audio_Grounding":
            path = path[:-3] + "flac"  # as the authors' script does
        clip = str(table.parent / f"{task}_{dataset}" / path)
        fields: JsonDict = {"question": column(row, "question", table), "source": dataset}
        if track == "Chat":
            fields["meta_info"] = column(row, "meta_info", table)
        else:
            # Its prompt prints a choice that is not there as "None".
            given = [row.get(f"choice_{letter}") for letter in "abcd"]
            fields |= {f"choice_{c}": str(v) for c, v in zip("abcd", given, strict=True)}
            fields["choices"] = [str(choice) for choice in given if choice is not None]
        name = column(row, "uniq_id", table)
        yield Item(name, [clip], column(row, "answer_gt", table), fields, row)


def mmau(root: str, subset: JsonDict) -> Iterator[Item]:
    """mmau-test-mini.json, and the clips that it names; answers may be withheld."""
    table = find(root, subset["table"], what="MMAU")
    for row in read_records(table):
        if row.get("task") == subset["task"]:
            clip = column(row, "audio_id", table).removeprefix("./")
            fields = {"source": row.get("dataset", ""), "difficulty": row.get("difficulty", "")}
            yield _choice_item(row, column(row, "id", table), [clip], fields, table)


def mmar(root: str, subset: JsonDict) -> Iterator[Item]:
    """MMAR-meta.json, and the clips that it names; a subset is a modality."""
    table = find(root, subset["table"], f"{subset['table']}l", what="MMAR")
    for row in read_records(table):
        if column(row, "modality", table).replace("_", "-") == subset["name"]:
            clip = column(row, "audio_path", table).removeprefix("./")
            fields = {"source": row.get("category", ""), "language": row.get("language", "")}
            yield _choice_item(row, column(row, "id", table), [clip], fields, table)


def mmau_pro(root: str, subset: JsonDict) -> Iterator[Item]:
    """test.parquet, and data/ with the clips that it names; a subset is a kind of question."""
    from qa_jax.data.readers.hf_datasets import read_rows

    table = find(root, subset["table"], what="MMAU-Pro")
    for row, _ in read_rows(str(table)):
        category = column(row, "category", table)
        kind = category if category in ("open", "instruction following") else "closed"
        if kind == subset["name"]:
            clips = row["audio_path"]
            clips = [clips] if isinstance(clips, str) else list(clips)
            yield _choice_item(row, column(row, "id", table), clips, {"source": category}, table)


def openaudiobench(root: str, subset: JsonDict) -> Iterator[Item]:
    """SUBSET/: SUBSET.csv and audios/."""
    name = subset["name"]
    directory = find(root, name, f"eval_datas/{name}", what="OpenAudioBench")
    table = find(str(directory), f"{name}.csv", what="OpenAudioBench")
    for row in read_csv(table):
        file = column(row, "audio_filename", table)
        reference = column(row, subset["reference"], table) if subset["reference"] else ""
        fields = {"question": column(row, subset["question"], table)}
        yield Item(file, [str(directory / "audios" / file)], reference, fields, row)


def _choice_item(
    row: JsonDict, name: str, clips: Sequence[str], fields: JsonDict, table: AnyPath
) -> Item:
    choices = row.get("choices")
    if isinstance(choices, str):  # a list that was written as Python writes it
        try:
            choices = ast.literal_eval(choices)
        except (ValueError, SyntaxError):
            raise InputError(f"{table}: {name}", "has choices that are no list") from None
    choices = [str(choice) for choice in choices or []]
    lines = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    fields = {
        "question": column(row, "question", f"{table}: {name}"),
        "choices": choices,
        "choice_list": str(choices),
        "choice_lines": "\n".join(lines),
        **fields,
    }
    paths = [str(table.parent / clip) for clip in clips]
    reference = str(row.get("answer") or "")
    if reference and choices and reference not in choices:
        raise InputError(f"{table}: {name}", f"its answer {reference!r} is none of its choices")
    return Item(name, paths, reference, fields, row)
