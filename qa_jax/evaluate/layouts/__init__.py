"""How the data of benchmarks lies in a directory: a function a layout, (root, subset) -> items."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from qa_jax.config import BenchmarkConfig, JsonDict
from qa_jax.errors import InputError, suggest
from qa_jax.evaluate.layouts import labels, questions, speech
from qa_jax.evaluate.layouts.base import Item
from qa_jax.evaluate.layouts.hub import from_hub

__all__ = ["LAYOUTS", "Item", "read_items"]

LAYOUTS: dict[str, Callable[[str, JsonDict], Iterator[Item]]] = {
    "librispeech": speech.librispeech,
    "aishell2": speech.aishell2,
    "common_voice": speech.common_voice,
    "fleurs": speech.fleurs,
    "covost2": speech.covost2,
    "meld": labels.meld,
    "vocalsound": labels.vocalsound,
    "air_bench": questions.air_bench,
    "mmau": questions.mmau,
    "mmar": questions.mmar,
    "mmau_pro": questions.mmau_pro,
    "openaudiobench": questions.openaudiobench,
}


def read_items(benchmark: BenchmarkConfig, subset: str, data: str) -> list[Item]:
    """The items of a subset.

    Args:
        benchmark: the recipe.
        subset: one of its subsets.
        data: the directory in which the data lies, or "hub" for the Hugging Face hub. Data that
            is only on the hub may be a directory as well, of Parquet files below SUBSET/.

    Raises:
        InputError: the data is not there, or an item has a name that another has.
    """
    settings = {"name": subset, **benchmark.subsets[subset]}
    if data == "hub" or benchmark.layout not in LAYOUTS:
        items = list(from_hub(_hub_name(settings, data, benchmark), benchmark.columns))
    else:
        items = list(LAYOUTS[benchmark.layout](data, settings))
    if not items:
        raise InputError(data, f"has no item of {subset}", "check that the data is complete")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise InputError(data, f"{subset} has two items {item.id}", "remove one")
        seen.add(item.id)
    return items


def _hub_name(settings: JsonDict, data: str, benchmark: BenchmarkConfig) -> str:
    if data != "hub":
        directory = Path(data, settings["name"])
        if not directory.is_dir():
            raise InputError(directory, "is not there", 'give "hub", or a directory of Parquet')
        return str(directory)
    if "hub" not in settings:
        known = [name for name, subset in benchmark.subsets.items() if "hub" in subset]
        remedy = suggest(settings["name"], known) if known else f"download it from {benchmark.url}"
        raise InputError(settings["name"], "is not on the hub", remedy)
    return f"hf://{settings['hub']}"
