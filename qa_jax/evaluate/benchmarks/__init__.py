"""Benchmarks: one recipe each, beside this file, or a user's own."""

from qa_jax.evaluate.benchmarks.recipes import (
    benchmark_names,
    load_benchmark,
    metrics_of,
    read_benchmark,
)

__all__ = ["benchmark_names", "load_benchmark", "metrics_of", "read_benchmark"]
