"""Names of topologies."""

from __future__ import annotations

import pytest

from qa_jax.errors import InputError
from qa_jax.plan import find_target


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7:2x2", "unknown topology; did you mean"),
        ("v5e", "has no shape; write for example v5e:4x4"),
        ("h100:many", "no number of GPUs; write h100:8"),
    ],
)
def test_unknown_targets_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_target(name)
