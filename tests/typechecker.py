"""The run-time type checker of the tests: `tests/conftest.py` installs it for all of qa_jax.

beartype checks the arguments and results of every function, jaxtyping the shapes and dtypes of
arrays. Arrays that are passed as fields of a NamedTuple are checked here as well.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable

import jax
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable

# An int is accepted for a float, as by mypy.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typechecker(function: Callable) -> Callable:
    """The function with checks; applied by jaxtyping within the scope of its shapes."""
    checked = _beartype(function)
    if not inspect.isfunction(function):  # a dataclass
        return checked

    @functools.wraps(function)
    def wrapper(*arguments: object, **keywords: object) -> object:
        result = checked(*arguments, **keywords)
        for value in (*arguments, *keywords.values()):
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                _check_fields(value)
        return result

    return wrapper


def _check_fields(value: tuple) -> None:
    hints = _field_hints(type(value))
    for name, field in zip(value._fields, value, strict=True):  # type: ignore[attr-defined]
        # Trees of shardings and of shapes have the same classes.
        if isinstance(field, jax.Array | np.ndarray) and not is_bearable(field, hints[name]):
            shape = f"{field.dtype}{list(field.shape)}"
            raise TypeError(f"{type(value).__name__}.{name} is {shape}, expected {hints[name]}")


@functools.cache
def _field_hints(cls: type) -> dict[str, object]:
    return typing.get_type_hints(cls)
