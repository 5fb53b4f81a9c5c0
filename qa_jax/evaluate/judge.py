"""Asks another model, behind any API of OpenAI's form, to score answers; resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from qa_jax.config import BenchmarkConfig, JsonDict
from qa_jax.errors import InputError
from qa_jax.evaluate.benchmarks import metrics_of
from qa_jax.evaluate.metrics.judged import JUDGE_RULES, JUDGE_TASKS
from qa_jax.evaluate.score import read_answers, row_key
from qa_jax.generate import drop_torn_row
from qa_jax.terminal import Progress

Ask = Callable[[str], str]
"""Sends a message to the judge, and returns its answer."""

_CHARACTERS_PER_TOKEN = 4


class Message(NamedTuple):
    """What the judge is asked about a row."""

    text: str
    swapped: bool


class Plan(NamedTuple):
    """What judging takes, to be told before it is paid for.

    Attributes:
        messages: of each row; a row that is not judged has none.
        num_asked: rows whose judgements are there already.
        num_requests: those that are left.
        input_tokens: of these, about.
        output_tokens: of these, at most.
        digest: of the judge, its settings and its prompt.
    """

    messages: list[list[Message]]
    num_asked: int
    num_requests: int
    input_tokens: int
    output_tokens: int
    digest: str


def plan_judging(
    rows: Sequence[JsonDict],
    benchmark: BenchmarkConfig,
    output: str | Path,
    *,
    model: str,
    prompt: str | None = None,
) -> Plan:
    """What is to be asked, without what the output has already.

    Args:
        rows: of answers.
        benchmark: their recipe.
        output: where `judge` writes.
        model: the judge's name.
        prompt: the message, where the recipe's is in a file of the user's.

    Raises:
        InputError: the recipe has no judge, the prompt is missing, or the output is of others.
    """
    judge = benchmark.judge
    if not judge.model:
        raise InputError(benchmark.title, "has no judge", "score its answers")
    prompt = prompt or judge.prompt
    if not prompt:
        raise InputError("--prompt", f"is needed: {judge.prompt_file}", "name a text file of it")
    messages = [_messages(row, benchmark, prompt) for row in rows]
    settings = [model, prompt, judge.temperature, judge.max_tokens]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    num_asked = _resume(Path(output), rows, digest)
    left = [message for own in messages[num_asked:] for message in own]
    return Plan(
        messages,
        num_asked,
        len(left),
        sum(len(message.text) for message in left) // _CHARACTERS_PER_TOKEN,
        len(left) * judge.max_tokens,
        digest,
    )


def judge(
    rows: Sequence[JsonDict],
    plan: Plan,
    ask: Ask,
    output: str | Path,
    *,
    num_threads: int = 8,
    progress: Progress | None = None,
) -> None:
    """Writes each row with its "judgements", in order, as they come.

    Args:
        rows: of answers.
        plan: of `plan_judging`.
        ask: sends one message.
        output: the file; rows that are there are not asked about again.
        num_threads: messages at a time.
        progress: called with (rows done, rows in all).
    """

    def judgements(index: int) -> list[JsonDict]:
        return [
            {"text": ask(message.text), "swapped": message.swapped}
            for message in plan.messages[index]
        ]

    left = range(plan.num_asked, len(rows))
    with ThreadPoolExecutor(num_threads) as pool, Path(output).open("a", encoding="utf-8") as file:
        try:
            for index, found in zip(left, pool.map(judgements, left), strict=True):
                row = {**rows[index], "judgements": found, "judge": plan.digest}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                if progress is not None:
                    progress(index + 1, len(rows))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _messages(row: JsonDict, benchmark: BenchmarkConfig, prompt: str) -> list[Message]:
    subset = str(row.get("subset", ""))
    rule = next((m for m in metrics_of(benchmark, subset) if m in JUDGE_RULES), None)
    if rule is None or "error" in row:
        return []
    return [
        Message(_fill(row, benchmark, prompt, rule, swapped), swapped)
        for swapped in ((False, True) if benchmark.judge.both_orders else (False,))
    ]


def _fill(row: JsonDict, benchmark: BenchmarkConfig, prompt: str, rule: str, swapped: bool) -> str:
    pair = (row.get("reference", ""), row["prediction"])
    first, second = reversed(pair) if swapped else pair
    fields = {**row, "first": first, "second": second, "task": JUDGE_TASKS.get(rule, "")}
    names = benchmark.judge.replace or {f"{{{name}}}": name for name in fields}
    for name, field in names.items():
        if name in prompt and field not in fields:
            raise InputError(" ".join(row_key(row)), f"has no {field}", "answer it again")
    return "".join(_replaced(prompt, names, fields))


def _replaced(prompt: str, names: dict[str, str], fields: JsonDict) -> Iterator[str]:
    """The prompt with its names replaced, but not what looks like one in a row's own text."""
    while prompt:
        places = {name: prompt.find(name) for name in names if name in prompt}
        if not places:
            yield prompt
            return
        name = min(places, key=lambda name: (places[name], -len(name)))
        yield prompt[: places[name]]
        yield str(fields[names[name]])
        prompt = prompt[places[name] + len(name) :]


def _resume(output: Path, rows: Sequence[JsonDict], digest: str) -> int:
    """How many rows are judged already; cuts off a torn one."""
    if not output.exists():
        return 0
    done = read_answers([output]) if b"\n" in output.read_bytes() else []
    for number, (own, row) in enumerate(zip(done, rows, strict=False), start=1):
        is_same = row_key(own) == row_key(row) and own.get("prediction") == row.get("prediction")
        if not is_same or own.get("judge") != digest:
            raise InputError(
                f"{output}:{number}", "is of another answer or judge", "give another --output"
            )
    drop_torn_row(output)
    return len(done)


def openai_judge(benchmark: BenchmarkConfig, model: str, url: str | None, key: str | None) -> Ask:
    """Asks through OpenAI's API or one of its form.

    Args:
        benchmark: whose judge's settings are used.
        model: the judge's name there.
        url: of the API, up to /v1; OpenAI's by default.
        key: for it; OPENAI_API_KEY by default.

    Raises:
        InputError: for a judge that cannot be asked; what was judged before is kept.
    """
    try:
        import openai
    except ImportError:
        raise InputError("judge", "needs openai", 'pip install "qa_jax[eval]"') from None
    try:
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=6)
    except openai.OpenAIError as error:
        raise InputError("judge", str(error), "set OPENAI_API_KEY") from None

    def ask(text: str) -> str:
        try:
            answer = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": text}],
                temperature=benchmark.judge.temperature,
                max_tokens=benchmark.judge.max_tokens,
            )
        except openai.OpenAIError as error:
            raise InputError(
                "judge", f"does not answer ({error})", "run the command again to go on"
            ) from None
        return answer.choices[0].message.content or ""

    return ask
