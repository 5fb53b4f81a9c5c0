"""The device mesh."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis has; -1 (one axis at most) takes all remaining devices.

    Attributes:
        data: data parallelism (replicated parameters, one reduction of gradients a step).
        fsdp: FSDP: parameters, optimizer state and the batch are sharded.
        tensor: tensor parallelism: heads, MLP and vocabulary are sharded.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
