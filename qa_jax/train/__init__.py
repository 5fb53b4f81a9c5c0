"""Training: objectives, optimizer, step, loop."""

from qa_jax.train.loop import Preempted, train

__all__ = ["Preempted", "train"]
