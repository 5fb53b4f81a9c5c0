"""XLA options published for training large models, by platform: `train.xla_flags: tuned`.

The compiler named beside each accepts it and compiles the training step with it. None has been
timed on an accelerator, so they are off by default.
"""

from __future__ import annotations

from collections.abc import Mapping

XLA_FLAGS: dict[str, dict[str, str | bool]] = {
    # Accepted by libtpu 0.0.42.1: overlap of collectives with matrix products, as in MaxText.
    "tpu": {
        "xla_enable_async_all_gather": "true",
        "xla_enable_async_collective_permute": "true",
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        "xla_tpu_enable_data_parallel_all_reduce_opt": True,
        "xla_tpu_data_parallel_opt_different_sized_ops": True,
    },
    # Accepted by jaxlib 0.10.2: starts collectives early and awaits them late.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "cpu": {},
}


def xla_flags(platform: str, name: str) -> Mapping[str, str | bool]:
    """Compiler options for a platform: none unless `name` is "tuned"."""
    return XLA_FLAGS[platform] if name == "tuned" else {}
