"""Numerical self-checks to run on new hardware."""

from qa_jax.selftest.checks import Result, selftest

__all__ = ["Result", "selftest"]
