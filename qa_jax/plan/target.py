"""The machine of a plan: a TPU topology described by its compiler, or GPUs by name."""

from __future__ import annotations

import math
import os
import re
from typing import Any, NamedTuple

import jax

from qa_jax.errors import InputError, suggest
from qa_jax.parallel.hardware import CHIPS, Chip, chip_of

_GPUS = {
    "a100": "NVIDIA A100",
    "h100": "NVIDIA H100",
    "h200": "NVIDIA H200",
    "l4": "NVIDIA L4",
    "l40s": "NVIDIA L40S",
    "rtx4090": "NVIDIA GeForce RTX 4090",
}
_TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")


class Target(NamedTuple):
    """Devices to compile for.

    Attributes:
        name: as given.
        devices: JAX's descriptions of them; empty for GPUs, for which nothing is compiled.
        num_devices: number of devices.
        chip: peak speeds and memory of one device: a chip, or half of one that is two devices.
    """

    name: str
    devices: tuple[jax.Device, ...]
    num_devices: int
    chip: Chip


def find_target(name: str, num_slices: int = 1) -> Target:
    """The target of a topology's name.

    Args:
        name: "v5e:4x4", "v5p:2x2x1" and the like, or "h100:8" for so many GPUs.
        num_slices: TPU slices of that shape, connected by DCN.

    Raises:
        InputError: for an unknown name, or if libtpu is not installed.
    """
    kind, _, shape = name.lower().partition(":")
    if kind in _GPUS:
        count = int(shape) if shape.isdigit() else 0
        if not count or num_slices != 1:
            raise InputError(name, "no number of GPUs", f"write {kind}:8")
        return Target(name, (), count, CHIPS[_GPUS[kind]])
    if kind not in _TPUS:
        raise InputError(name, "unknown topology", suggest(kind, [*_TPUS, *_GPUS]))
    if not re.fullmatch(r"\d+(x\d+)+", shape):
        raise InputError(name, "has no shape", "write for example v5e:4x4 or v5p:2x2x1")
    chips = math.prod(int(n) for n in shape.split("x")) * num_slices
    devices = tuple(_describe(name.lower(), num_slices, chips == num_slices).devices)
    whole = chip_of(devices[0].device_kind)
    if whole is None:
        raise InputError(name, f"{devices[0].device_kind} is unknown", "see parallel/hardware.py")
    share = chips / len(devices)
    chip = whole._replace(
        flops=whole.flops * share,
        memory=int(whole.memory * share),
        bandwidth=whole.bandwidth * share,
        ici_bandwidth=whole.ici_bandwidth * share,
    )
    return Target(
        name if num_slices == 1 else f"{name} x {num_slices}", devices, len(devices), chip
    )


def _describe(name: str, num_slices: int, single_chip: bool) -> Any:
    # The compiler would otherwise query the metadata server of a TPU VM and wait.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # libtpu allows one process, because a TPU does; none is used, so several may compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if single_chip:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:
        text = " ".join(str(error).split())
        if "libtpu" in text.lower() or isinstance(error, ImportError | NotImplementedError):
            raise InputError(
                name, "needs the TPU compiler", 'pip install "qa_jax[tpu]" (Linux)'
            ) from None
        raise InputError(
            name, f"no such topology ({text[:200]})", "see cloud.google.com/tpu/docs"
        ) from None
