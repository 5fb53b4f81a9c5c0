"""Nested dicts of parameters: flattening, merging and partitioning.

Flattening is Flax's `traverse_util`. Merging and partitioning are written here because
`optax.partition` and `equinox.partition` leave placeholders in the holes, and the training step
differentiates a tree that holds trainable parameters alone.
"""

from __future__ import annotations

from flax.traverse_util import flatten_dict, unflatten_dict

from qa_jax.typing import Params

__all__ = ["flatten_dict", "merge_trees", "partition", "unflatten_dict"]


def merge_trees(*trees: Params) -> Params:
    """Trees with different leaves as one; for a leaf in several, the last tree's value."""
    return unflatten_dict({path: x for tree in trees for path, x in flatten_dict(tree).items()})


def partition(tree: Params, mask: Params) -> tuple[Params, Params]:
    """The leaves where `mask`, a tree of bools, is True, and the remaining leaves."""
    flat, chosen = flatten_dict(tree), flatten_dict(mask)
    return (
        unflatten_dict({path: x for path, x in flat.items() if chosen[path]}),
        unflatten_dict({path: x for path, x in flat.items() if not chosen[path]}),
    )
