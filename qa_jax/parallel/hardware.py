"""Peak speeds and memory of accelerators, from vendor specifications."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """One chip.

    Attributes:
        flops: dense bfloat16 operations per second.
        memory: bytes.
        bandwidth: memory bandwidth in bytes per second.
        ici_bandwidth: bytes per second sent over all of its chip-to-chip links together (ICI or
            NVLink).
        clock: of a TPU's cores, in hertz: `flops` over the operations of its matrix units in a
            cycle. 0 where no compiler's cycles are read.
    """

    flops: float
    memory: int
    bandwidth: float
    ici_bandwidth: float
    clock: float = 0.0


_GIB = 2**30
# By the first whole words of jax.Device.device_kind. Sources, November 2026:
# docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x; NVIDIA's data sheets of
# A100, H100, H200, L4, L40S and RTX 4090 (the last three are linked by PCI Express).
CHIPS = {
    "TPU v4": Chip(275e12, 32 * _GIB, 1228e9, 300e9, 1.05e9),
    "TPU v5 lite": Chip(197e12, 16 * _GIB, 819e9, 200e9, 1.5e9),
    "TPU v5e": Chip(197e12, 16 * _GIB, 819e9, 200e9, 1.5e9),
    "TPU v5": Chip(459e12, 95 * _GIB, 2765e9, 600e9, 1.75e9),
    "TPU v5p": Chip(459e12, 95 * _GIB, 2765e9, 600e9, 1.75e9),
    "TPU v6e": Chip(918e12, 32 * _GIB, 1640e9, 448e9, 1.75e9),
    "TPU v6": Chip(918e12, 32 * _GIB, 1640e9, 448e9, 1.75e9),
    "TPU7x": Chip(2307e12, 192 * _GIB, 7380e9, 1200e9),
    "NVIDIA A100": Chip(312e12, 80 * 10**9, 2039e9, 300e9),
    "NVIDIA H100": Chip(989e12, 80 * 10**9, 3350e9, 450e9),
    "NVIDIA L4": Chip(121e12, 24 * 10**9, 300e9, 32e9),
    "NVIDIA L40S": Chip(362e12, 48 * 10**9, 864e9, 32e9),
    "NVIDIA GeForce RTX 4090": Chip(165e12, 24 * 10**9, 1008e9, 32e9),
    "NVIDIA H200": Chip(989e12, 141 * 10**9, 4800e9, 450e9),
}
# Each of these chips is two JAX devices.
_TWO_DEVICES = ("TPU7x",)


def chip_of(kind: str) -> Chip | None:
    """By `jax.Device.device_kind`; None for a CPU, or a chip that is not in the table."""
    matches = (chip for name, chip in CHIPS.items() if re.match(rf"{name}(?![0-9A-Za-z])", kind))
    return next(matches, None)


def peak_flops(device: jax.Device) -> float | None:
    """Of one device; None for a CPU, or an accelerator that is not in the table."""
    chip = chip_of(device.device_kind)
    if chip is None:
        return None
    return chip.flops / (2 if device.device_kind.startswith(_TWO_DEVICES) else 1)


def memory_in_use(device: jax.Device) -> int | None:
    """Peak bytes of a device's memory so far; None if the backend does not report them."""
    stats = device.memory_stats() or {}
    return stats.get("peak_bytes_in_use")
