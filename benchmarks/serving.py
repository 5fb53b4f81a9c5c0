"""`qa-jax serve` under load.

`python benchmarks/serving.py peer`: beside `transformers serve`, with the same random weights, for
16 clients; both servers run, and take turns. Needs transformers[serving].

`python benchmarks/serving.py load CHECKPOINT DATA`: 200 streaming clients for three minutes on the
demo's model and its test split (runs/demo/model runs/demo/data): each answer is compared with that
of the same request alone; memory, and percentiles of times.

Results are written to benchmarks/RESULTS.md between markers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import openai
import soundfile
from common import cpu_name, replace_section

Messages = list[dict[str, Any]]


class Served(NamedTuple):
    """A running server."""

    name: str
    process: subprocess.Popen[bytes]
    client: openai.AsyncOpenAI
    model: str


@contextmanager
def server(name: str, command: list[str], model: str, probe: str) -> Iterator[Served]:
    """Starts a server and waits until its probe answers 200."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "--port", str(port)], **quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                sys.exit(f"{name} ended with {process.returncode}")
            try:
                urllib.request.urlopen(url + probe, timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=600)
        yield Served(name, process, client, model)
    finally:
        process.terminate()
        process.wait(60)


def program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def user(clip: bytes, text: str | None) -> Messages:
    data = base64.b64encode(clip).decode()
    content: Messages = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
    return [
        {"role": "user", "content": content + ([{"type": "text", "text": text}] if text else [])}
    ]


# Beside transformers.


def make_model(directory: Path, name: str) -> list[str]:
    """A preset with random weights, and a vocabulary of words, which it returns."""
    import tokenizers
    import transformers
    from against_transformers import reference

    from qa_jax.config import preset

    reference(directory, name)
    config = preset(name)
    texts = [f"w{i}" for i in range(config.text.vocab_size)]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>"]
    special += ["<unk>", "<|AUDIO|>"]
    first = config.audio_token_id - len(special) + 1
    texts[first : config.audio_token_id + 1] = special
    vocab = {text: i for i, text in enumerate(texts)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[2], unk_token="<unk>"
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=config.audio.num_mel_bins)
    processor = transformers.Qwen2AudioProcessor(extractor, fast)
    processor.chat_template = processor.default_chat_template
    processor.save_pretrained(directory)
    return sorted(set(texts) - set(special))


def make_requests(count: int, longest: float, words: list[str]) -> list[tuple[Messages, int]]:
    """Messages with clips of 1 s to the longest, and tokens to generate."""
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        samples = 0.1 * rng.standard_normal(int(rng.uniform(1, longest) * 16_000))
        file = io.BytesIO()
        soundfile.write(file, samples, 16_000, format="WAV")
        text = " ".join(rng.choice(words, rng.integers(5, 40)))
        made.append((user(file.getvalue(), text), int(rng.integers(8, 65))))
    return made


async def total_seconds(
    served: Served, requests: list[tuple[Messages, int]], num_clients: int
) -> tuple[float, list[str]]:
    """Time for all requests, and their answers."""
    waiting, texts = list(enumerate(requests)), [""] * len(requests)

    async def client() -> None:
        while waiting:
            index, (messages, count) = waiting.pop(0)
            answer = await served.client.chat.completions.create(
                model=served.model,
                messages=messages,
                max_tokens=count,
                temperature=0,  # type: ignore[arg-type]
            )
            texts[index] = answer.choices[0].message.content or ""

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    return time.perf_counter() - started, texts


def beside_transformers(arguments: argparse.Namespace) -> list[str]:
    lines = [
        f"{cpu_name()}, {os.cpu_count()} cores: {arguments.requests} requests with clips of 1 s",
        "to the longest and 8 to 64 new tokens, by 16 clients; medians of "
        f"{arguments.runs} runs, in turns.",
        "",
        "| preset | longest clip | transformers serve | qa-jax serve | ratio | equal answers |",
        "|---|---|---|---|---|---|",
    ]
    for name, longest in (("demo", 3.0), ("bench", 3.0), ("bench", 30.0)):
        ours, theirs, equal = compare(arguments, name, longest)
        count = arguments.requests
        lines.append(
            f"| {name} | {longest:.0f} s | {count / theirs:.2f} requests/s | "
            f"{count / ours:.2f} requests/s | {theirs / ours:.1f}x | {equal} of {count} |"
        )
        print(lines[-1], flush=True)
    return lines


def compare(arguments: argparse.Namespace, name: str, longest: float) -> tuple[float, float, int]:
    """Medians of both servers' times, and how many greedy answers are equal."""
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        words = make_model(Path(directory), name)
        requests = make_requests(arguments.requests, longest, words)
        ours = [program("qa-jax"), "serve", "--checkpoint", directory]
        peers = [program("transformers"), "serve", directory, "--device", "cpu"]
        with (
            server("qa-jax serve", ours, directory, "/ready") as a,
            server("transformers serve", peers, directory, "/health") as b,
        ):
            times: tuple[list[float], list[float]] = ([], [])
            for run in range(arguments.runs + 1):
                found = []
                for served, own in zip((a, b), times, strict=True):
                    seconds, texts = runner.run(total_seconds(served, requests, 16))
                    found.append(texts)
                    if run:  # the first is the warm-up
                        own.append(seconds)
    equal = sum(x == y for x, y in zip(*found, strict=True))
    return statistics.median(times[0]), statistics.median(times[1]), equal


# Under load.


def read_messages(data: Path, count: int = 60) -> list[Messages]:
    """Questions of the demo's test split."""
    found = []
    for task in ("transcribe", "chat"):
        for line in (data / f"test_{task}.jsonl").read_text().splitlines()[:count]:
            content = json.loads(line)["messages"][0]["content"]
            text = next((part["text"] for part in content if part["type"] == "text"), None)
            found.append(user((data / content[0]["audio"]).read_bytes(), text))
    return found


class Counts:
    """What the clients saw."""

    def __init__(self) -> None:
        self.results: collections.Counter[str] = collections.Counter()
        self.first: list[float] = []
        self.between: list[float] = []
        self.memory: list[float] = []


async def under_load(
    served: Served, questions: list[Messages], num_clients: int, seconds: float
) -> Counts:
    counts, settings = Counts(), {"model": served.model, "max_tokens": 40, "temperature": 0}
    create: Any = served.client.chat.completions.create
    alone = [(await create(messages=m, **settings)).choices[0].message.content for m in questions]
    end = time.monotonic() + seconds

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            index, text, last = rng.randrange(len(questions)), "", 0.0
            started = time.perf_counter()
            try:
                async for chunk in await create(messages=questions[index], stream=True, **settings):
                    if not chunk.choices or not chunk.choices[0].delta.content:
                        continue
                    now = time.perf_counter()
                    if last:
                        counts.between.append(now - last)
                    else:
                        counts.first.append(now - started)
                    text, last = text + chunk.choices[0].delta.content, now
                counts.results["equal" if text == alone[index] else "different"] += 1
            except openai.RateLimitError:
                counts.results["429"] += 1
                await asyncio.sleep(1)
            except openai.APIError as error:
                counts.results[type(error).__name__] += 1

    async def watch() -> None:
        while time.monotonic() < end:
            pages = Path(f"/proc/{served.process.pid}/statm").read_text().split()[1]
            counts.memory.append(int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20)
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(client(i) for i in range(num_clients)))
    return counts


def load(arguments: argparse.Namespace) -> list[str]:
    questions = read_messages(Path(arguments.data))
    command = [program("qa-jax"), "serve", "--checkpoint", arguments.checkpoint]
    with server("qa-jax serve", command, arguments.checkpoint, "/ready") as served:
        counts = asyncio.run(under_load(served, questions, arguments.clients, arguments.seconds))
    per_minute = max(1, len(counts.memory) // max(1, round(arguments.seconds / 60)))
    first, last = (
        statistics.mean(x) for x in (counts.memory[:per_minute], counts.memory[-per_minute:])
    )
    rate = counts.results["equal"] / arguments.seconds
    told = ", ".join(f"{count} {name}" for name, count in counts.results.most_common())

    def percentiles(times: list[float]) -> str:
        ordered = sorted(times)
        return " / ".join(f"{ordered[int(p * (len(ordered) - 1))]:.3f} s" for p in (0.5, 0.99))

    return [
        f"{cpu_name()}, {os.cpu_count()} cores for clients and server together:",
        f"{arguments.clients} streaming clients for {arguments.seconds:.0f} s on the demo's model.",
        f"Answers beside those of the same request alone: {told}; {rate:.0f} a second.",
        f"Time to the first token, p50 / p99: {percentiles(counts.first)};",
        f"between pieces of text: {percentiles(counts.between)}.",
        f"Memory, first and last minute: {first:.0f} and {last:.0f} MiB.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    peer = parts.add_parser("peer")
    peer.add_argument("--runs", type=int, default=3)
    peer.add_argument("--requests", type=int, default=48)
    peer.set_defaults(run=beside_transformers, section="serving_peer")
    loaded = parts.add_parser("load")
    loaded.add_argument("checkpoint")
    loaded.add_argument("data")
    loaded.add_argument("--clients", type=int, default=200)
    loaded.add_argument("--seconds", type=float, default=180)
    loaded.set_defaults(run=load, section="serving_load")
    arguments = parser.parse_args()
    lines = arguments.run(arguments)
    print("\n".join(lines))
    replace_section(arguments.section, lines)


if __name__ == "__main__":
    main()
