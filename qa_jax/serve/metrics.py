"""Metrics under vLLM's names, so that dashboards made for it work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from qa_jax.generate import Answer, num_compilations
from qa_jax.serve.runner import Runner

_LABELS = ("model_name", "engine")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)

_HISTOGRAMS = {
    "time_to_first_token_seconds": ("Time from a request to its first token.", _SECONDS),
    "inter_token_latency_seconds": ("Time between tokens.", _TOKEN_SECONDS),
    "request_time_per_output_token_seconds": ("Mean time between tokens.", _TOKEN_SECONDS),
    "e2e_request_latency_seconds": ("Time from a request to the end of its answer.", _SECONDS),
    "request_queue_time_seconds": ("Time before a request gets a slot.", _SECONDS),
    "request_inference_time_seconds": ("Time in a slot.", _SECONDS),
    "request_prefill_time_seconds": ("Time from the slot to the first token.", _SECONDS),
    "request_decode_time_seconds": ("Time from the first token to the last.", _SECONDS),
    "request_prompt_tokens": ("Tokens of prompts.", _TOKENS),
    "request_generation_tokens": ("Tokens of answers.", _TOKENS),
    "request_max_num_generation_tokens": ("The most tokens that answers may have.", _TOKENS),
    "request_params_max_tokens": ("The most tokens that answers may have.", _TOKENS),
    "request_params_n": ("Answers to a request.", (1, 2, 5, 10, 20)),
}
_COUNTERS = {
    "num_preemptions": "Always 0: an answer keeps its slot.",
    "prompt_tokens": "Tokens of prompts.",
    "generation_tokens": "Tokens of answers.",
    "prefix_cache_queries": "Tokens of prompts that were looked for in slots.",
    "prefix_cache_hits": "Tokens of prompts that were found in slots.",
}


class Metrics:
    """What the server counts.

    Args:
        runners: by the names of their models.
    """

    def __init__(self, runners: dict[str, Runner]) -> None:
        self.registry = CollectorRegistry()
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self.registry)
            for name, (text, buckets) in _HISTOGRAMS.items()
        }
        self._counters = {
            name: Counter(f"vllm:{name}", text, _LABELS, registry=self.registry)
            for name, text in _COUNTERS.items()
        }
        for counter in self._counters.values():  # they are there before the first request
            for model in runners:
                counter.labels(model, "0")
        self._success = Counter(
            "vllm:request_success",
            "Answers by how they ended.",
            (*_LABELS, "finished_reason"),
            registry=self.registry,
        )
        self.responses = Counter(
            "qa_jax:http_responses",
            "Responses by route and status.",
            ("route", "status"),
            registry=self.registry,
        )
        started = Gauge("qa_jax:start_time_seconds", "When it started.", registry=self.registry)
        started.set(time.time())
        self.registry.register(_Engines(runners))

    def count_answers(self, model: str, answers: Sequence[Answer], num_choices: int) -> None:
        """Counts finished answers to a request."""
        labels = (model, "0")

        def observe(name: str, value: float) -> None:
            self._histograms[name].labels(*labels).observe(max(0.0, value))

        observe("request_params_n", num_choices)
        for answer in answers:
            prompt, generated = answer.request.tokens.size, len(answer.generated)
            self._success.labels(*labels, reason_of(answer)).inc()
            for name, count in (
                ("prompt_tokens", prompt),
                ("generation_tokens", generated),
                ("prefix_cache_queries", prompt),
                ("prefix_cache_hits", answer.num_cached_tokens),
            ):
                self._counters[name].labels(*labels).inc(count)
            if not generated:
                continue
            observe("time_to_first_token_seconds", answer.first_token - answer.submitted)
            observe("e2e_request_latency_seconds", answer.finished - answer.submitted)
            observe("request_queue_time_seconds", answer.started - answer.submitted)
            observe("request_inference_time_seconds", answer.finished - answer.started)
            observe("request_prefill_time_seconds", answer.first_token - answer.started)
            observe("request_decode_time_seconds", answer.finished - answer.first_token)
            observe("request_prompt_tokens", prompt)
            observe("request_generation_tokens", generated)
            limit = answer.request.sampling.max_new_tokens
            observe("request_max_num_generation_tokens", limit)
            observe("request_params_max_tokens", limit)
            if generated > 1:
                mean = (answer.finished - answer.first_token) / (generated - 1)
                observe("request_time_per_output_token_seconds", mean)
                for _ in range(generated - 1):  # tokens of a burst come together
                    observe("inter_token_latency_seconds", mean)


def reason_of(answer: Answer) -> str:
    """How an answer ended, in vLLM's words; one that is being cancelled has not."""
    return "abort" if answer.finish_reason in (None, "cancelled") else answer.finish_reason


class _Engines:
    """What engines are doing when somebody asks."""

    def __init__(self, runners: dict[str, Runner]) -> None:
        self._runners = runners

    def collect(self) -> Iterator[Metric]:
        for name, text, value in (
            ("num_requests_running", "Answers in slots.", lambda r: r.num_running),
            ("num_requests_waiting", "Answers in the queue.", lambda r: r.num_waiting),
            ("kv_cache_usage_perc", "Slots in use, 0 to 1.", _usage),
        ):
            family = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
            for model, runner in self._runners.items():
                family.add_metric((model, "0"), value(runner))
            yield family
        compiled = GaugeMetricFamily("qa_jax:compilations", "Programs that XLA compiled.")
        compiled.add_metric((), num_compilations())
        yield compiled


def _usage(runner: Runner) -> float:
    return runner.num_running / runner.engine.num_slots
