"""What accelerators can do at most: dense bfloat16 operations a second, as their makers say."""

from __future__ import annotations

import jax

# By the start of jax.Device.device_kind. Sources: cloud.google.com/tpu/docs, NVIDIA data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Of one device; None for a processor, or an accelerator that is not in the table."""
    kind = device.device_kind
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)


def memory_in_use(device: jax.Device) -> int | None:
    """Peak bytes of a device's memory so far; None where it does not tell."""
    stats = device.memory_stats() or {}
    return stats.get("peak_bytes_in_use")
