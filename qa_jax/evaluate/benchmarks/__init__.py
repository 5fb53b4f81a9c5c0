"""Benchmarks: one recipe each, beside this file, or a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from qa_jax.config import BenchmarkConfig, JsonDict, parse, read_yaml
from qa_jax.data.chat import PLACEHOLDER, Prompt, Span, apply_chat_template
from qa_jax.data.questions import Question
from qa_jax.errors import InputError, suggest
from qa_jax.evaluate.layouts import Item, read_items
from qa_jax.evaluate.metrics import find_metric


def benchmark_names() -> list[str]:
    """The names of all recipes."""
    return sorted(p.name.removesuffix(".yaml") for p in files(__name__).iterdir() if
                  p.name.endswith(".yaml"))  # fmt: skip


def load_benchmark(name: str) -> BenchmarkConfig:
    """A recipe by its name, or of a .yaml file.

    Raises InputError for an unknown name, or a recipe that cannot be used.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    elif name in benchmark_names():
        path = Path(str(files(__name__).joinpath(f"{name}.yaml")))
    else:
        raise InputError("benchmark", f"no {name!r}", suggest(name, benchmark_names()))
    benchmark = parse(BenchmarkConfig, read_yaml(path), path)
    known = {*benchmark.subsets, *benchmark.averages}
    named = {*benchmark.subset_metrics, *benchmark.judge.subsets}
    for names in (named, *benchmark.averages.values()):
        for subset in names:
            if subset not in known:
                raise InputError(path, f"names a subset {subset}", suggest(subset, known))
    for metric in {m for subset in benchmark.subsets for m in metrics_of(benchmark, subset)}:
        find_metric(metric, benchmark.normalizer)
    return benchmark


def metrics_of(benchmark: BenchmarkConfig, subset: str) -> tuple[str, ...]:
    """The metrics of a subset, the benchmark's own first."""
    return benchmark.subset_metrics.get(subset, benchmark.metrics)


def read_benchmark(
    name: str,
    data: str,
    *,
    subsets: Sequence[str] = (),
    style: str | None = None,
    table: str | None = None,
    limit: int | None = None,
) -> list[Question]:
    """What a benchmark asks.

    Args:
        name: as for `load_benchmark`.
        data: where its data is; see `read_items`.
        subsets: some of its subsets; all by default.
        style: "base", without a chat template, or "instruct"; by default the recipe's.
        table: the data's file with the questions, if it is not the recipe's.
        limit: items of each subset, the first ones.

    Raises:
        InputError: for what is not there.
    """
    benchmark = load_benchmark(name)
    label = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    questions = []
    for subset in subsets or benchmark.subsets:
        if subset not in benchmark.subsets:
            raise InputError("subset", f"no {subset!r}", suggest(subset, benchmark.subsets))
        if table:
            benchmark.subsets[subset]["table"] = table
        items = read_items(benchmark, subset, data)[:limit]
        questions += [_question(benchmark, label, subset, item, style) for item in items]
    return questions


def _question(
    benchmark: BenchmarkConfig, name: str, subset: str, item: Item, style: str | None
) -> Question:
    settings = benchmark.subsets[subset]
    is_raw = (style or benchmark.style) == "base"
    template = benchmark.prompt if is_raw else benchmark.instruct_prompt
    template = benchmark.prompt if template is None else template
    try:
        text = template.format(**{**settings, **item.fields})
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{name} {item.id}", f"the prompt's {error} is no field", ", ".join(item.fields)
        ) from None
    row: JsonDict = {
        "id": item.id,
        "benchmark": name,
        "subset": subset,
        "audio": [str(clip) for clip in item.audio],
        "prompt": text,
        "reference": item.reference,
    }
    if "language" in settings:
        row["language"] = settings["language"]
    row |= {key: value for key, value in item.fields.items() if not key.startswith("choice_")}
    one_clip = len(item.audio) == 1
    prompt = _prompt(item, text, is_raw)
    return Question(row, prompt, instruction=text if one_clip else None, is_raw=is_raw)


def _prompt(item: Item, text: str, is_raw: bool) -> Prompt:
    if is_raw:
        return Prompt([Span(PLACEHOLDER * len(item.audio) + text, False)], item.audio)
    parts: list[JsonDict] = [{"type": "audio", "audio": clip} for clip in item.audio]
    parts += [{"type": "text", "text": text}] if text else []
    return apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
