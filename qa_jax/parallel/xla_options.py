"""Compiler options that others train large models with, by platform: `train.xla: tuned`.

Each was given to the compiler named beside it, which took it and compiled the training step with
it; none was timed here, for no accelerator was at hand. So they are off unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

OPTIONS: dict[str, dict[str, str | bool]] = {
    # libtpu 0.0.42.1: collectives in the background of matrix products, as MaxText sets them.
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
    # jaxlib 0.10.2 knows the name: collectives started early and awaited late.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "cpu": {},
}


def xla_options(platform: str, kind: str) -> Mapping[str, str | bool]:
    """Options for a platform: none unless `kind` is "tuned"."""
    return OPTIONS[platform] if kind == "tuned" else {}
