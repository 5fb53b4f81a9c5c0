"""Compiler options of the training step, by platform: `train.xla_flags`."""

from __future__ import annotations

from collections.abc import Mapping

XLA_FLAGS: dict[str, dict[str, str | bool]] = {
    # Weights sharded by FSDP are gathered before a product, not in a loop of small products (a
    # collective matmul): the time that libtpu 0.0.42.1 estimates for a step of 4 to 16 chips of v5e
    # and v6e falls by an eighth to a third (docs/plan.md). `--train.xla_flags default` plans a step
    # without it.
    "tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
    "gpu": {},
    "cpu": {},
}


def xla_flags(platform: str, name: str) -> Mapping[str, str | bool]:
    """Compiler options for a platform: none unless `name` is "tuned"."""
    return XLA_FLAGS[platform] if name == "tuned" else {}
