"""Chips by the name of their device."""

from __future__ import annotations

import pytest

from qa_jax.parallel.hardware import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "TPU v5 lite"),
        ("TPU v5", "TPU v5"),
        ("TPU v5p", "TPU v5p"),
        ("TPU v6 lite", "TPU v6"),
        ("TPU7x", "TPU7x"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("NVIDIA L40S", "NVIDIA L40S"),
    ],
)
def test_chips_by_device_kind(kind: str, name: str) -> None:
    assert chip_of(kind) == CHIPS[name]


def test_unknown_chips() -> None:
    """A longer name is another chip, not the one whose name it begins with."""
    assert chip_of("cpu") is chip_of("NVIDIA L40") is chip_of("NVIDIA H1000") is None
