"""Judging through an API of OpenAI's form: a recorded judge behind a real server, with faults."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qa_jax.errors import InputError
from qa_jax.evaluate import load_benchmark, read_answers, score
from qa_jax.evaluate.judge import judge, openai_judge, plan_judging

PROMPT = "Sound: XAudioX. Asked: XQuestionX\n1: XAssistant1X\n2: XAssistant2X\nTwo numbers."
# What the judge said, by the two answers in their order.
RECORDED = {
    ("A dog.", "a dog barks"): "7 8",
    ("a dog barks", "A dog."): "9 7",
    ("A dog.", "XAudioX"): "8 1",
    ("XAudioX", "A dog."): "I cannot say",
}


def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"id": str(i), "benchmark": "air_bench_chat", "subset": "sound", "reference": "A dog.",
         "question": "What is it?", "meta_info": "a dog, XQuestionX", "prediction": text}
        for i, text in enumerate(("a dog barks", "XAudioX"))
    ]  # fmt: skip
    broken = {"id": "2", "benchmark": "air_bench_chat", "subset": "sound", "error": "broken"}
    return [*found, broken]


class Judge(ThreadingHTTPServer):
    """Answers from the record; the first request is one too many, the second a fault."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages: list[str] = []
        self.faults = [429, 500]
        self.requests: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.faults:
            return self._send(self.server.faults.pop(0), {"error": {"message": "later"}})
        message = body["messages"][0]["content"]
        self.server.messages.append(message)
        self.server.requests.append(body)
        lines = message.splitlines()
        text = RECORDED[lines[1].removeprefix("1: "), lines[2].removeprefix("2: ")]
        choice = {"index": 0, "finish_reason": "stop",
                  "message": {"role": "assistant", "content": text}}  # fmt: skip
        self._send(200, {"id": "x", "object": "chat.completion", "created": 1,
                         "model": body["model"], "choices": [choice]})  # fmt: skip

    def _send(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("retry-after-ms", "1")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Judge]:
    pytest.importorskip("openai", reason="openai is not installed")
    found = Judge()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def test_both_orders_of_air_bench(server: Judge, tmp_path: Path) -> None:
    benchmark, output = load_benchmark("air_bench_chat"), tmp_path / "judged.jsonl"
    plan = plan_judging(rows(), benchmark, output, model="gpt", prompt=PROMPT)
    # Told before anything is paid for: two rows in two orders, the row with an error in none.
    assert (plan.num_asked, plan.num_requests) == (0, 4)
    assert plan.input_tokens == sum(len(m.text) for own in plan.messages for m in own) // 4
    assert plan.output_tokens == 4 * 1024
    assert not server.messages
    judge(rows(), plan, openai_judge(benchmark, "gpt", server.url, "-"), output, num_threads=1)
    # What looks like a name of the prompt in a row's own text stays.
    assert server.messages[0] == (
        "Sound: a dog, XQuestionX. Asked: What is it?\n1: A dog.\n2: a dog barks\nTwo numbers."
    )
    assert server.requests[0]["temperature"] == 1.0 and server.requests[0]["max_tokens"] == 1024
    scored = score(read_answers([output]))
    values = {s.metric: s.value.value for s in scored.scores}
    assert values["judge_air_bench"] == ((8 + 1) / 2 + 9) / 2
    assert values["judge_air_bench_wins"] == 100 * (1 / 2 + 1) / 2


def test_stopped_and_resumed(server: Judge, tmp_path: Path) -> None:
    benchmark, output = load_benchmark("air_bench_chat"), tmp_path / "judged.jsonl"
    server.faults.clear()
    ask = openai_judge(benchmark, "gpt", server.url, "-")

    def fails(text: str) -> str:
        if "XAudioX\nTwo" in text:
            raise InputError("judge", "does not answer")
        return ask(text)

    plan = plan_judging(rows(), benchmark, output, model="gpt", prompt=PROMPT)
    with pytest.raises(InputError, match="does not answer"):
        judge(rows(), plan, fails, output, num_threads=1)
    assert len(server.messages) == 2
    with output.open("a") as file:
        file.write('{"id": "torn')
    plan = plan_judging(rows(), benchmark, output, model="gpt", prompt=PROMPT)
    assert (plan.num_asked, plan.num_requests) == (1, 2)
    seen: list[int] = []
    judge(rows(), plan, ask, output, progress=lambda done, _: seen.append(done))
    assert seen == [2, 3] and len(server.messages) == 4
    assert [r["id"] for r in read_answers([output])] == ["0", "1", "2"]
    with pytest.raises(InputError, match=r"judged\.jsonl:1: is of another answer or judge"):
        plan_judging(rows(), benchmark, output, model="another", prompt=PROMPT)


def test_what_is_missing_is_named(server: Judge, tmp_path: Path) -> None:
    output = tmp_path / "judged.jsonl"
    with pytest.raises(InputError, match="--prompt: is needed: the judge's prompt in your copy"):
        plan_judging(rows(), load_benchmark("air_bench_chat"), output, model="gpt")
    with pytest.raises(InputError, match="LibriSpeech: has no judge; score its answers"):
        plan_judging(rows(), load_benchmark("librispeech"), output, model="gpt")
    bare = [{"id": "0", "subset": "sound", "prediction": "a", "reference": "b"}]
    with pytest.raises(InputError, match="sound 0: has no meta_info"):
        plan_judging(bare, load_benchmark("air_bench_chat"), output, model="gpt", prompt=PROMPT)
    server.faults[:] = [401] * 10
    ask = openai_judge(load_benchmark("air_bench_chat"), "gpt", server.url, "-")
    with pytest.raises(InputError, match="judge: does not answer .*401"):
        ask("hello")


def test_a_recipes_own_prompt(tmp_path: Path) -> None:
    found = [
        {"id": "0", "subset": "sd-qa", "prediction": "Paris {task}", "reference": "Paris",
         "question": "Which city?"},
        {"id": "1", "subset": "openbookqa", "prediction": "B", "reference": "B", "question": "?"},
    ]  # fmt: skip
    plan = plan_judging(found, load_benchmark("voicebench"), tmp_path / "j.jsonl", model="gpt")
    (message,) = plan.messages[0]
    assert message.text == (
        "A user said: Which city?\nAn assistant answered: Paris {task}\nThe right answer, if there "
        'is one: Paris\n\nIs the answer right? Reply with "Yes" or "No" alone.'
    )
    assert plan.messages[1] == []  # scored by its letter
