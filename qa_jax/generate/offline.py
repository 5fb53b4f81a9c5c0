"""Answers many questions into a JSONL file: in order, resumable, past clips that are damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qa_jax.config import SAMPLE_RATE, SamplingConfig
from qa_jax.config.plain import JsonDict
from qa_jax.data import Processor
from qa_jax.data.audio import clip_num_samples
from qa_jax.data.questions import Question
from qa_jax.errors import InputError
from qa_jax.generate.engine import Engine
from qa_jax.generate.requests import Answer, Clip, Request
from qa_jax.generate.transcripts import Transcript, Window, window_requests
from qa_jax.terminal import Progress

_SORTED_TOGETHER = 64
"""Questions that are answered in order of their clips' length, before the next as many."""


class Summary(NamedTuple):
    """Rows of the output, and those of them with an error."""

    num_rows: int
    num_errors: int


def answer_questions(
    engine: Engine,
    processor: Processor,
    questions: Sequence[Question],
    sampling: SamplingConfig,
    output: str | Path,
    *,
    field: str = "text",
    model_name: str = "",
    window_seconds: float | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Writes a row for each question, in their order: `Question.row`, then the answer's text and
    the "seconds" of its clips, or "error", and a digest of the settings.

    Rows are written as soon as those before them are known. Called again after it was stopped, it
    goes on behind the last complete row.

    Args:
        engine: answers.
        processor: reads clips and tokenizes.
        questions: what is asked.
        sampling: settings; a row's seed is theirs plus its index.
        output: the file.
        field: name of the answer's field.
        model_name: part of the digest.
        window_seconds: answers questions that have an instruction window by window, see
            `window_requests`; their rows have "segments" as well, with times in seconds.
        progress: called with (rows done, rows in all).

    Raises:
        InputError: the file has rows of other questions or settings.
    """
    output = Path(output)
    settings = {"model": model_name, "field": field, **dataclasses.asdict(sampling)}
    if window_seconds is not None:
        settings["window_seconds"] = window_seconds
    elif processor.long_audio != "error":
        settings["long_audio"] = processor.long_audio
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    done = _resume(output, questions, digest)
    num_errors = sum("error" in row for row in done)
    output.parent.mkdir(parents=True, exist_ok=True)
    finished: dict[int, JsonDict] = {}
    following = len(done)
    report = progress or (lambda done, total: None)
    report(following, len(questions))
    asked = _Asker(engine, processor, questions, sampling, window_seconds)
    answers = _answers(asked, _by_length(processor, questions, following), field)
    with output.open("a", encoding="utf-8") as file, closing(answers):
        for index, answer in answers:
            finished[index] = answer
            while following in finished:
                row = {**questions[following].row, **finished.pop(following), "settings": digest}
                num_errors += "error" in row
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                following += 1
            file.flush()
            report(following, len(questions))
    return Summary(following, num_errors)


def read_rows(output: str | Path) -> list[JsonDict]:
    """The complete rows of an output file."""
    return _complete_rows(Path(output).read_bytes())


def _complete_rows(content: bytes) -> list[JsonDict]:
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def _resume(output: Path, questions: Sequence[Question], digest: str) -> list[JsonDict]:
    """The rows that are there; cuts off a torn one."""
    if not output.exists():
        return []
    content = output.read_bytes()
    remedy = "give another --output, or remove it"
    try:
        rows = _complete_rows(content)
    except ValueError as error:
        raise InputError(output, f"not JSON ({error})", remedy) from None
    if len(rows) > len(questions):
        raise InputError(output, f"has {len(rows)} rows for {len(questions)} questions", remedy)
    for number, (row, question) in enumerate(zip(rows, questions, strict=False), start=1):
        source = f"{output}:{number}"
        if not isinstance(row, dict) or any(row.get(k) != v for k, v in question.row.items()):
            raise InputError(source, "is the row of another question", remedy)
        if row.get("settings") != digest:
            raise InputError(source, "was answered with other settings", remedy)
    drop_torn_row(output)
    return rows


def drop_torn_row(output: Path) -> None:
    """Cuts off what a kill left behind a file's last complete row."""
    content = output.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with output.open("r+b") as file:
            file.truncate(complete)


class _Asker(NamedTuple):
    """Makes the requests of questions."""

    engine: Engine
    processor: Processor
    questions: Sequence[Question]
    sampling: SamplingConfig
    window_seconds: float | None

    def requests(self, index: int) -> list[Window] | InputError:
        """A question's, of which there are several if it is answered window by window."""
        question, own = self.questions[index], self.sampling.of_row(index)
        try:
            windows = self._windows(question, own)
            for window in windows:
                self.engine.check(window.request)
        except InputError as error:
            return error
        return windows

    def _windows(self, question: Question, sampling: SamplingConfig) -> list[Window]:
        processor, config = self.processor, self.engine.config
        audio, base = question.prompt.audio, question.base
        if self.window_seconds is not None and question.instruction is not None:
            return window_requests(
                processor.load(audio, base=base, long_audio="window")[0],
                question.instruction,
                processor,
                config,
                sampling,
                raw=question.is_raw,
                max_seconds=self.window_seconds,
            )
        clips = processor.load(audio, base=base)
        ids, clips = processor.tokenize_clips(question.prompt.text, clips)
        made = [Clip.of(clip, config) for clip in clips]
        request = Request(np.array(ids), made, sampling, config, processor.tokenizer.decode)
        return [Window(0, sum(clip.size for clip in clips), request)]

    def row(self, windows: list[Window], answers: list[Answer], field: str) -> JsonDict:
        """The answer's fields of a row."""
        seconds = {"seconds": windows[-1].last / SAMPLE_RATE}
        if self.window_seconds is None:
            return {field: answers[0].text, **seconds}
        transcript = Transcript.of(windows, answers)
        segments = [{"start": s.start, "end": s.end, "text": s.text} for s in transcript.segments]
        return {field: transcript.text, **seconds, "segments": segments}


def _answers(
    asked: _Asker, indices: Iterator[int], field: str
) -> Generator[tuple[int, JsonDict], None, None]:
    """Index and answer, or error, of questions, in any order."""
    failed: list[tuple[int, JsonDict]] = []
    index_of: dict[Request, int] = {}
    windows_of: dict[int, list[Window]] = {}
    answer_to: dict[Request, Answer] = {}

    def requests() -> Generator[Request, None, None]:
        with closing(_ahead(asked.requests, indices)) as made:
            for index, windows in made:
                if isinstance(windows, InputError):
                    failed.append((index, {"error": str(windows)}))
                    continue
                windows_of[index] = windows
                index_of.update((window.request, index) for window in windows)
                yield from (window.request for window in windows)

    with closing(requests()) as source, closing(asked.engine.run(source)) as answers:
        for answer in answers:
            yield from failed
            failed.clear()
            answer_to[answer.request] = answer
            index = index_of.pop(answer.request)
            windows = windows_of[index]
            if all(window.request in answer_to for window in windows):
                own = [answer_to.pop(window.request) for window in windows_of.pop(index)]
                yield index, asked.row(windows, own, field)
    yield from failed


def _by_length(processor: Processor, questions: Sequence[Question], first: int) -> Iterator[int]:
    """Indices, neighbours sorted by the length of their clips."""

    def size(index: int) -> int:
        question = questions[index]
        try:
            return sum(
                clip_num_samples(clip, question.base, processor.long_audio)
                for clip in question.prompt.audio
            )
        except InputError:
            return 0  # told when it is read

    for start in range(first, len(questions), _SORTED_TOGETHER):
        yield from sorted(range(start, min(start + _SORTED_TOGETHER, len(questions))), key=size)


def _ahead(
    make: Callable[[int], list[Window] | InputError], indices: Iterator[int], count: int = 16
) -> Generator[tuple[int, list[Window] | InputError], None, None]:
    """Makes requests in threads, some ahead of their use."""
    with ThreadPoolExecutor(2, thread_name_prefix="clips") as pool:
        pending = deque((i, pool.submit(make, i)) for i in itertools.islice(indices, count))
        while pending:
            index, future = pending.popleft()
            yield index, future.result()
            for i in indices:
                pending.append((i, pool.submit(make, i)))
                break
