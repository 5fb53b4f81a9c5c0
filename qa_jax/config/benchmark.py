"""Settings of a benchmark: what `qa_jax/evaluate/benchmarks/*.yaml` say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qa_jax.config.plain import JsonDict


@dataclass(frozen=True)
class JudgeConfig:
    """How another model scores the answers; no prompt for none.

    Attributes:
        prompt: the message, with {question}, {reference}, {prediction}, {meta_info}, and {first}
            and {second} of the two answers.
        prompt_file: a file of the user's copy of the benchmark that has it, instead.
        replace: names in that file, and the fields that they stand for.
        model: the judge of the benchmark's authors.
        temperature: of the judge.
        max_tokens: of its answer.
        both_orders: asks twice, with the reference's and the model's answer swapped.
    """

    prompt: str = ""
    prompt_file: str = ""
    replace: dict[str, str] = field(default_factory=dict)
    model: str = ""
    temperature: float = 0.0
    max_tokens: int = 1024
    both_orders: bool = False


@dataclass(frozen=True)
class ExportConfig:
    """The file that the benchmark's own script reads.

    Attributes:
        key: name of the answer in it.
        form: its rows in a JSON list, or as JSON lines.
        columns: names of other fields in it, and ours; without any, rows are the data's own.
    """

    key: str = "response"
    form: Literal["json", "jsonl"] = "jsonl"
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkConfig:
    """A benchmark: the data's layout, what is asked, and how answers are scored.

    Attributes:
        title: its name.
        url: where the data is.
        layout: a name of `qa_jax.evaluate.layouts.LAYOUTS`: how its files lie in a directory.
        subsets: parts that are scored apart, each with what its layout needs, its "language",
            and "hub", its name on the Hugging Face hub.
        columns: names of columns on the hub for an item's id, reference and other fields.
        prompt: text beside the clip, with {fields} of the item.
        instruct_prompt: the text for a chat model, if it is another.
        style: whom the prompt is for: the base model, without a chat template, or instruct, with.
        max_new_tokens: of an answer.
        min_new_tokens: of an answer.
        metrics: names of `qa_jax.evaluate.metrics.METRICS`; the first is the benchmark's.
        subset_metrics: of subsets that have others.
        normalizer: a name of `qa_jax.evaluate.normalizers.NORMALIZERS`.
        averages: means of subsets, or of averages before them, by name.
        judge: how another model scores the answers.
        export: the file that the benchmark's own script reads.
        reported: numbers that others measured, by who did, by subset; percentages where the metric
            is one.
        notes: what a reader of the numbers should know.
    """

    title: str = ""
    url: str = ""
    layout: str = ""
    subsets: dict[str, JsonDict] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    prompt: str = ""
    instruct_prompt: str | None = None
    style: Literal["base", "instruct"] = "instruct"
    max_new_tokens: int = 256
    min_new_tokens: int = 1
    metrics: tuple[str, ...] = ("wer", "exact_match")
    subset_metrics: dict[str, tuple[str, ...]] = field(default_factory=dict)
    normalizer: str = "simple"
    averages: dict[str, tuple[str, ...]] = field(default_factory=dict)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    reported: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: str = ""
