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

from qa_jax.config import SamplingConfig
from qa_jax.config.plain import JsonDict
from qa_jax.data import Processor
from qa_jax.data.audio import clip_num_samples
from qa_jax.data.questions import Question
from qa_jax.errors import InputError
from qa_jax.generate.engine import Engine
from qa_jax.generate.requests import Request, requests_of_batch
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
    progress: Progress | None = None,
) -> Summary:
    """Writes a row for each question, in their order: `Question.row`, then the answer's text or
    "error", and a digest of the settings.

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
        progress: called with (rows done, rows in all).

    Raises:
        InputError: the file has rows of other questions or settings.
    """
    output = Path(output)
    settings = {"model": model_name, "field": field, **dataclasses.asdict(sampling)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    done = _resume(output, questions, digest)
    num_errors = sum("error" in row for row in done)
    output.parent.mkdir(parents=True, exist_ok=True)
    finished: dict[int, JsonDict] = {}
    following = len(done)
    report = progress or (lambda done, total: None)
    report(following, len(questions))
    answers = _answers(engine, processor, questions, sampling, following, field)
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
    complete = content.rfind(b"\n") + 1
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
    if complete < len(content):
        with output.open("r+b") as file:
            file.truncate(complete)
    return rows


def _answers(
    engine: Engine,
    processor: Processor,
    questions: Sequence[Question],
    sampling: SamplingConfig,
    first: int,
    field: str,
) -> Generator[tuple[int, JsonDict], None, None]:
    """Index and answer, or error, of the questions from `first` on, in any order."""
    failed: list[tuple[int, JsonDict]] = []
    index_of: dict[Request, int] = {}

    def make(index: int) -> Request | InputError:
        question, own = questions[index], sampling.of_row(index)
        try:
            clips = processor.load(question.prompt.audio, base=question.base)
            ids = processor.tokenize(question.prompt.text, [clip.size for clip in clips])
            batch = processor.collate([ids], clips, "left")
            request = requests_of_batch(batch, engine.config, own, processor.tokenizer.decode)[0]
            engine.check(request)
        except InputError as error:
            return error
        return request

    def requests() -> Generator[Request, None, None]:
        with closing(_ahead(make, _by_length(processor, questions, first))) as made:
            for index, request in made:
                if isinstance(request, InputError):
                    failed.append((index, {"error": str(request)}))
                else:
                    index_of[request] = index
                    yield request

    with closing(requests()) as source, closing(engine.run(source)) as answers:
        for answer in answers:
            yield from failed
            failed.clear()
            yield index_of.pop(answer.request), {field: answer.text}
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
    make: Callable[[int], Request | InputError], indices: Iterator[int], count: int = 16
) -> Generator[tuple[int, Request | InputError], None, None]:
    """Makes requests in threads, some ahead of their use."""
    with ThreadPoolExecutor(2, thread_name_prefix="clips") as pool:
        pending = deque((i, pool.submit(make, i)) for i in itertools.islice(indices, count))
        while pending:
            index, future = pending.popleft()
            yield index, future.result()
            for i in indices:
                pending.append((i, pool.submit(make, i)))
                break
