"""Array types for signatures: jaxtyping's, with the shape letters of `docs/architecture.md`.

B batch, A audio clips, F log-mel frames, M mel bins, P audio embeddings, T tokens, S keys,
D embedding, N heads, K key-value heads, H head size, V vocabulary, L layers. The tests check every
annotation at run time (`tests/conftest.py`); elsewhere annotations cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped, UInt, UInt8, UInt32

if TYPE_CHECKING:
    # Open for mypy: NumPy arrays that are passed to a jitted function are JAX arrays inside.
    AnyArray: TypeAlias = Any
else:
    AnyArray = jax.Array | np.ndarray
"""A JAX or a NumPy array."""
DType = Any  # jax.typing.DTypeLike does not include jnp.float32 under mypy
"""A dtype, its name or its scalar class."""
Params = dict[str, Any]
"""A nested dict of arrays, keyed by attribute names."""
ParamPath = tuple[str, ...]
"""A parameter's keys from the outermost dict to the array."""
FlatParams = dict[ParamPath, Any]
"""Arrays by path."""

__all__ = [
    "AnyArray",
    "Array",
    "Bool",
    "DType",
    "FlatParams",
    "Float",
    "Int",
    "Key",
    "ParamPath",
    "Params",
    "PyTree",
    "Shaped",
    "UInt",
    "UInt8",
    "UInt32",
]
