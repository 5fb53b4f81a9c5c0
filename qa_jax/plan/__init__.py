"""Ahead-of-time memory and time estimates: the real step, compiled for real topologies."""

from qa_jax.plan.estimate import Plan
from qa_jax.plan.generation import make_generation_plan
from qa_jax.plan.plan import make_plan
from qa_jax.plan.search import search
from qa_jax.plan.target import Target, find_target

__all__ = ["Plan", "Target", "find_target", "make_generation_plan", "make_plan", "search"]
