"""How it learns: objectives, optimizer, step, loop."""

from qa_jax.train.loop import Stopped, train

__all__ = ["Stopped", "train"]
