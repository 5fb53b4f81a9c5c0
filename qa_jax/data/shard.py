"""`qa-jax data shard`: a dataset's clips, decoded and checked, copied into ArrayRecord shards.

The records are split into parts, each of which becomes one shard and one part of the manifest. A
part is a function of the dataset alone, is written whole or not at all, and is not written twice;
so parts may be made by any number of processes or by any Apache Beam runner, stopped, and begun
again, with the same bytes at the end.
"""

from __future__ import annotations

import functools
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from qa_jax.config import SAMPLE_RATE, JsonDict, read_json
from qa_jax.data.audio import clip_file, load_audio
from qa_jax.data.manifest import parse_record
from qa_jax.data.readers import Line, read_dataset
from qa_jax.data.stored import StoredClip
from qa_jax.errors import InputError
from qa_jax.paths import as_path, is_remote, write_whole

AudioFormat = Literal["flac", "keep"]
_SETTINGS, _ERRORS, _MANIFEST = "shards.json", "errors.jsonl", "manifest.jsonl"


class ShardSummary(NamedTuple):
    """What was written.

    Attributes:
        num_clips: clips in all shards.
        num_shards: shards.
        errors: "file:line: cause; remedy" of each record that could not be used and is left out.
    """

    num_clips: int
    num_shards: int
    errors: list[str]


class Part(NamedTuple):
    """The records of one shard."""

    number: int
    lines: list[Line]


def shard(
    dataset: str | Path,
    directory: str | Path,
    *,
    records_per_shard: int = 4096,
    audio_format: AudioFormat = "flac",
    num_processes: int | None = None,
    beam_options: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ShardSummary:
    """Copies a dataset's clips into shards, and writes the manifest that names them there.

    Run again, it goes on where it was stopped.

    Args:
        dataset: a manifest, or whatever else `qa_jax.data.readers` reads.
        directory: new, or of the same command stopped; local or gs://. It gets the shards,
            manifest.jsonl, and errors.jsonl with the records that could not be used.
        records_per_shard: records of each shard.
        audio_format: "flac", 16 bits at 16 kHz, which later is read without resampling; or "keep",
            the files' own bytes.
        num_processes: all cores by default.
        beam_options: flags of an Apache Beam pipeline, such as --runner=DataflowRunner, which then
            makes the parts; needs the [beam] extra, and a directory that its workers share.
        progress: called with (parts done, parts in all).

    Raises:
        InputError: for a dataset that cannot be read, or a directory with something else.
    """
    settings = {
        "dataset": str(dataset),
        "records_per_shard": records_per_shard,
        "audio_format": audio_format,
    }
    _check_directory(directory, settings)
    parts = list(_parts(read_dataset(dataset), records_per_shard))
    if not parts:
        raise InputError(dataset, "contains no records")
    write = functools.partial(write_part, directory=str(directory), audio_format=audio_format)
    waiting = [part for part in parts if not _is_written(directory, part.number)]
    if beam_options is not None:
        _run_beam(write, waiting, beam_options)
    else:
        _run_processes(write, waiting, num_processes or os.cpu_count() or 1, progress, len(parts))
    return _finish(directory, len(parts))


def _check_directory(directory: str | Path, settings: JsonDict) -> None:
    path = as_path(directory)
    if (path / _SETTINGS).exists():
        if read_json(path / _SETTINGS) != settings:
            raise InputError(directory, "contains shards made otherwise", "name a new directory")
        return
    if not is_remote(directory) and Path(directory).exists() and any(Path(directory).iterdir()):
        raise InputError(directory, "exists and is not empty", "name a new directory")
    if not is_remote(directory):
        path.mkdir(parents=True, exist_ok=True)
    write_whole(path / _SETTINGS, json.dumps(settings))


def _parts(lines: Iterable[Line], records_per_shard: int) -> Iterator[Part]:
    lines = iter(lines)
    for number, chunk in enumerate(iter(lambda: list(islice(lines, records_per_shard)), [])):
        yield Part(number, chunk)


def _run_processes(
    write: Callable[[Part], None],
    parts: Sequence[Part],
    num_processes: int,
    progress: Callable[[int, int], None] | None,
    num_parts: int,
) -> None:
    known, num_processes = num_parts - len(parts), min(num_processes, len(parts))
    with ExitStack() as stack:
        if num_processes > 1:
            # Not forked, for this process may have threads.
            pool = ProcessPoolExecutor(num_processes, get_context("spawn"))
            stack.enter_context(pool)
            written = as_completed([pool.submit(write, part) for part in parts])
            finished: Iterable[object] = (future.result() for future in written)
        else:
            finished = map(write, parts)
        for done, _ in enumerate(finished, start=known + 1):
            if progress:
                progress(done, num_parts)


def _run_beam(write: Callable[[Part], None], parts: Sequence[Part], options: Sequence[str]) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise InputError("--runner", "needs Apache Beam", 'pip install "qa_jax[beam]"') from None
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        made = pipeline | beam.Create(list(parts)) | beam.Reshuffle()
        _ = made | beam.Map(write)


def _names(number: int) -> tuple[str, str, str]:
    """Of a part: its shard, its part of the manifest, and its errors."""
    stem = f"clips-{number:05}"
    return f"{stem}.array_record", f"{stem}.jsonl", f"{stem}.errors.jsonl"


def _is_written(directory: str | Path, number: int) -> bool:
    return (as_path(directory) / _names(number)[1]).exists()


def write_part(part: Part, directory: str, audio_format: AudioFormat) -> None:
    """Writes a shard, then its part of the manifest, which says that it is whole."""
    from array_record.python.array_record_module import ArrayRecordWriter

    shard_name, manifest_name, errors_name = _names(part.number)
    rows, errors, num_clips = [], [], 0
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / shard_name
        # Groups of one: any record can be read without its neighbours.
        writer = ArrayRecordWriter(str(local), "group_size:1")
        for line in part.lines:
            try:
                record = parse_record(line)
                encoded = [_encode(clip, record.base, audio_format) for clip in record.prompt.audio]
            except InputError as error:
                named = error.within(line.source)
                errors.append([named.source, named.cause, named.remedy])
                continue
            names = {}
            for clip, (data, num_samples) in zip(record.prompt.audio, encoded, strict=True):
                names[str(clip)] = f"{shard_name}#{num_clips},{num_samples}"
                writer.write(data)
                num_clips += 1
            rows.append(_renamed(record.raw, names))
        writer.close()
        output = as_path(directory)
        write_whole(output / shard_name, local.read_bytes())
    write_whole(output / errors_name, "".join(json.dumps(e) + "\n" for e in errors))
    write_whole(output / manifest_name, "".join(json.dumps(row) + "\n" for row in rows))


def _encode(clip: Any, base: str, audio_format: AudioFormat) -> tuple[bytes, int]:
    """A clip's bytes in a shard, and its samples at 16 kHz."""
    import soundfile

    samples = load_audio(clip, base=base)
    if audio_format == "keep":
        return clip_file(clip, base), samples.size
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue(), samples.size


def _finish(directory: str | Path, num_parts: int) -> ShardSummary:
    """Joins the parts of the manifest and of the errors."""
    output = as_path(directory)
    manifests, errors = [], []
    for number in range(num_parts):
        _, manifest_name, errors_name = _names(number)
        manifests.append((output / manifest_name).read_text())
        errors.append((output / errors_name).read_text())
    texts = [
        str(InputError(source, cause, remedy))
        for source, cause, remedy in map(json.loads, "".join(errors).splitlines())
    ]
    write_whole(output / _ERRORS, "".join(errors))
    # Written last: if the manifest exists, its shards are complete.
    write_whole(output / _MANIFEST, "".join(manifests))
    num_clips = "".join(manifests).count(".array_record#")
    return ShardSummary(num_clips, num_parts, texts)


def _renamed(value: Any, names: dict[str, str], key: str = "") -> Any:
    """A record with its clips' new names, in every field that can name a clip."""
    if isinstance(value, dict):
        return {k: _renamed(v, names, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v, names, key) for v in value]
    if isinstance(value, str | StoredClip) and key in ("audio", "audio_url", "audios"):
        return names.get(str(value), value)
    return value
