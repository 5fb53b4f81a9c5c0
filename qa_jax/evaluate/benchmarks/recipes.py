"""Reads recipes of benchmarks, and what they ask."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from qa_jax.config import BenchmarkConfig, JsonDict, parse, read_yaml
from qa_jax.data.questions import Question, clip_names, instruction_prompt
from qa_jax.errors import InputError, suggest
from qa_jax.evaluate.layouts import Item, read_items
from qa_jax.evaluate.metrics import find_metric
from qa_jax.evaluate.metrics.error_rate import ERROR_RATES

_METRICS_OF_TEXTS = {*ERROR_RATES, "bleu"}
"""Of transcripts and translations."""


def benchmark_names() -> list[str]:
    """The names of all recipes."""
    return sorted(p.name.removesuffix(".yaml") for p in files(__package__).iterdir() if
                  p.name.endswith(".yaml"))  # fmt: skip


def load_benchmark(name: str, table: str | None = None) -> BenchmarkConfig:
    """A recipe by its name, or of a .yaml file, which may name another as its `base:`.

    Args:
        name: of the recipe.
        table: the data's file with the questions, if it is not the recipe's.

    Raises:
        InputError: for an unknown name, or a recipe that cannot be used.
    """
    path = _recipe_path(name)
    raw = read_yaml(path)
    if "base" in raw:
        raw = {**read_yaml(_recipe_path(str(raw.pop("base")))), **raw}
    if table:
        raw["subsets"] = {name: {**own, "table": table} for name, own in raw["subsets"].items()}
    benchmark = parse(BenchmarkConfig, raw, path)
    known = {*benchmark.subsets, *benchmark.averages}
    for names in (benchmark.subset_metrics, *benchmark.averages.values()):
        for subset in names:
            if subset not in known:
                raise InputError(path, f"names a subset {subset}", suggest(subset, known))
    for metric in {m for subset in benchmark.subsets for m in metrics_of(benchmark, subset)}:
        find_metric(metric, benchmark.normalizer)
    return benchmark


def _recipe_path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in benchmark_names():
        raise InputError("benchmark", f"no {name!r}", suggest(name, benchmark_names()))
    return Path(str(files(__package__).joinpath(f"{name}.yaml")))


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
        table: as for `load_benchmark`.
        limit: items of each subset, the first ones.

    Raises:
        InputError: for what is not there.
    """
    benchmark = load_benchmark(name, table)
    questions = []
    for subset in subsets or benchmark.subsets:
        if subset not in benchmark.subsets:
            raise InputError("subset", f"no {subset!r}", suggest(subset, benchmark.subsets))
        items = read_items(benchmark, subset, data)[:limit]
        found = [_question(benchmark, name, subset, item, style) for item in items]
        for question in found if table else ():
            question.row["table"] = table  # so that answers find their items again
        questions += found
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
        "audio": clip_names(item.audio),
        "prompt": text,
        "reference": item.reference,
    }
    if "language" in settings:
        row["language"] = settings["language"]
    row |= {key: value for key, value in item.fields.items() if not key.startswith("choice_")}
    # Windows of a long clip are answered apart where answers can be joined.
    first = metrics_of(benchmark, subset)[:1]
    is_text = len(item.audio) == 1 and not _METRICS_OF_TEXTS.isdisjoint(first)
    prompt = instruction_prompt(item.audio, text, is_raw)
    return Question(row, prompt, instruction=text if is_text else None, is_raw=is_raw)
