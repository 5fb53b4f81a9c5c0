"""The machine that a plan is for: a TPU topology that its compiler describes, or GPUs by name."""

from __future__ import annotations

import math
import os
import re
from typing import Any, NamedTuple

from qa_jax.config import nearest
from qa_jax.errors import InputError
from qa_jax.parallel.hardware import CHIPS, Chip, chip_of

_GPUS = {
    "a100": "NVIDIA A100",
    "h100": "NVIDIA H100",
    "h200": "NVIDIA H200",
    "l4": "NVIDIA L4",
    "rtx4090": "NVIDIA GeForce RTX 4090",
}
_TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")


class Target(NamedTuple):
    """Devices to compile for.

    Attributes:
        name: as it was asked for.
        devices: JAX's descriptions of them; empty for GPUs, for which nothing is compiled.
        size: how many devices.
        chip: what one device can do: a chip, or its half where a chip is two devices.
    """

    name: str
    devices: tuple[Any, ...]
    size: int
    chip: Chip


def find_target(name: str, slices: int = 1) -> Target:
    """The target of a topology's name.

    Args:
        name: "v5e:4x4", "v5p:2x2x1" and the like, or "h100:8" for so many GPUs.
        slices: TPU slices of that shape, joined by the slow network.

    Raises:
        InputError: for an unknown name, or where libtpu is not installed.
    """
    kind, _, shape = name.lower().partition(":")
    if kind in _GPUS:
        count = int(shape) if shape.isdigit() else 0
        if not count or slices != 1:
            raise InputError(name, "no number of GPUs", f"write {kind}:8")
        return Target(name, (), count, CHIPS[_GPUS[kind]])
    if kind not in _TPUS:
        raise InputError(name, "unknown topology", nearest(kind, [*_TPUS, *_GPUS]))
    if not re.fullmatch(r"\d+(x\d+)+", shape):
        raise InputError(name, "has no shape", "write for example v5e:4x4 or v5p:2x2x1")
    chips = math.prod(int(n) for n in shape.split("x")) * slices
    devices = tuple(_describe(name.lower(), slices, chips == slices).devices)
    whole = chip_of(devices[0].device_kind)
    if whole is None:
        raise InputError(name, f"{devices[0].device_kind} is not known", "see parallel/hardware.py")
    share = chips / len(devices)
    chip = Chip(
        whole.flops * share, int(whole.memory * share), whole.bandwidth * share, whole.link * share
    )
    return Target(name if slices == 1 else f"{name} x {slices}", devices, len(devices), chip)


def _describe(name: str, slices: int, single: bool) -> Any:
    # The compiler would otherwise look for a TPU's host and wait.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # One process at a time may use a TPU; none is used here, so that others may compile, too.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if single:
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
