"""Generation settings, with the semantics of transformers' GenerationConfig."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qa_jax.config.plain import JsonDict
from qa_jax.errors import InputError

MAX_STOP_IDS = 8
MAX_LOGIT_BIASES = 64
MAX_TOP_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingConfig:
    """How an answer's tokens are sampled. Every setting is data: none needs a program of its own.

    Attributes:
        max_new_tokens: largest number of generated tokens.
        min_new_tokens: stop ids are excluded before so many tokens.
        temperature: divides the logits; 0 is greedy.
        top_k: sample from the k most probable tokens; 0 for all.
        top_p: sample from the smallest set of most probable tokens whose probabilities sum to p; 1
            for all.
        repetition_penalty: logits of tokens already in the row, prompt included, are divided by it
            if positive and multiplied if negative. Padding is not counted (it is in transformers,
            where a batch therefore answers differently from its rows).
        stop_ids: token ids that end an answer, and are its last token; at most `MAX_STOP_IDS`.
        seed: seed of the answer's random draws; None for a new one, which the answer tells.
        min_p: sample from tokens at least so many times as probable as the most probable; 0 for
            all.
        presence_penalty: subtracted from the logits of tokens already in the answer (OpenAI's).
        frequency_penalty: subtracted once for every time that a token is in the answer (OpenAI's).
        logit_bias: (token id, bias) pairs, added to the logits; at most `MAX_LOGIT_BIASES`.
        stop: texts that end an answer, which is cut before them.
        top_logprobs: how many of the most probable tokens are told, with their log-probabilities,
            for each token; at most `MAX_TOP_LOGPROBS`.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_ids: tuple[int, ...] = ()
    seed: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        for name, valid, remedy in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("min_new_tokens", 0 <= self.min_new_tokens < 2**31, "0 to 2**31 - 1"),
            ("temperature", self.temperature >= 0, "0 for greedy, or more"),
            ("top_k", 0 <= self.top_k < 2**31, "0 for all, or more, below 2**31"),
            ("top_p", 0 < self.top_p <= 1, "over 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "over 0; 1 for none"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "-2 to 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2 to 2"),
            ("seed", self.seed is None or 0 <= self.seed < 2**32, "0 to 2**32 - 1"),
            ("stop_ids", len(self.stop_ids) <= MAX_STOP_IDS, f"at most {MAX_STOP_IDS}"),
            ("logit_bias", len(self.logit_bias) <= MAX_LOGIT_BIASES, f"at most {MAX_LOGIT_BIASES}"),
            ("stop", all(self.stop), "texts that are not empty"),
            (
                "top_logprobs",
                0 <= self.top_logprobs <= MAX_TOP_LOGPROBS,
                f"0 to {MAX_TOP_LOGPROBS}",
            ),
        ):
            if not valid:
                raise InputError(name, f"{getattr(self, name)} is out of range", remedy)

    def of_row(self, index: int) -> SamplingConfig:
        """The settings of a row of a batch, whose seed is this one plus the row's index."""
        if self.seed is None:
            return self
        return replace(self, seed=(self.seed + index) % 2**32)


def from_generation_config(raw: JsonDict) -> JsonDict:
    """Fields of `SamplingConfig` that a generation_config.json sets.

    Its sampling settings count only with `do_sample: true`, as in transformers.
    """
    fields: JsonDict = {}
    for name in ("max_new_tokens", "min_new_tokens", "repetition_penalty"):
        if raw.get(name) is not None:
            fields[name] = raw[name]
    if raw.get("do_sample"):
        # Absent settings take transformers' own defaults: temperature 1, top_k 50, no top_p.
        temperature = raw.get("temperature")
        fields["temperature"] = 1.0 if temperature is None else temperature
        fields["top_k"] = raw.get("top_k", 50) or 0
        fields["top_p"] = raw.get("top_p", 1.0) or 1.0
    if raw.get("eos_token_id") is not None:
        fields["stop_ids"] = parse_token_ids(raw["eos_token_id"])
    return fields


def parse_token_ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    """Token ids from a field in which HF writes none, one or a list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
