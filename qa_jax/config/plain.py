"""Settings as plain dicts."""

from __future__ import annotations

import dataclasses
from typing import Any

JsonDict = dict[str, Any]
"""A JSON or YAML object as it is read."""


def to_dict(config: object) -> JsonDict:
    """A settings object as nested dicts and lists, for YAML."""
    return to_plain(dataclasses.asdict(config))  # type: ignore[call-overload]


def to_plain(x: Any) -> Any:
    """The same with lists for tuples."""
    if isinstance(x, dict):
        return {k: to_plain(v) for k, v in x.items()}
    return [to_plain(v) for v in x] if isinstance(x, list | tuple) else x
