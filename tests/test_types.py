"""Array types: every public function states shapes, and the tests check them at run time."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import AbstractArray, TypeCheckError

import qa_jax
from qa_jax.config import DPOConfig, SamplingConfig
from qa_jax.data.processor import Batch
from qa_jax.generate.sampling import RowSettings, sample_tokens
from qa_jax.model import AttentionMask, LogMel
from qa_jax.model.attention import cached_attention, dot_product_attention
from qa_jax.model.frontend import log_mel_from_power
from qa_jax.model.layers import apply_rope
from qa_jax.model.qwen2_audio import merge_audio_embeddings, segment_positions
from qa_jax.train.cross_entropy import cross_entropy
from qa_jax.train.objectives.dpo import dpo_loss

ANY_SHAPE = {
    # A linear layer contracts any number of dimensions, and a constraint applies to any array.
    "qa_jax.model.layers.Linear.__call__",
    "qa_jax.model.layers.Linear.project",
    "qa_jax.model.gradients.contract",
    "qa_jax.model.gradients.matmul",
    "qa_jax.model.gradients.materialize_cotangent",
    "qa_jax.model.gradients.materialize_on_tpu",
    "qa_jax.model.gradients.expand",
    "qa_jax.lora.layers.LoraLinear.project",
    "qa_jax.model.quantization.cast_to_param_dtype",
    "qa_jax.parallel.mesh.constrain",
    # Tensors of every shape are read and converted.
    "qa_jax.hf.table.TensorSpec.from_hf",
    "qa_jax.hf.table.TensorSpec.to_hf",
    "qa_jax.hf.reader.SafetensorsDir.read",
    "qa_jax.hf.load.read_part",
}


def public_functions() -> Iterator[tuple[str, Callable]]:
    for info in pkgutil.walk_packages(qa_jax.__path__, "qa_jax."):
        if info.name.startswith("qa_jax.cli"):  # no arrays
            continue
        if info.name == "qa_jax.evaluate.lmms_eval":  # a class for an environment of its own
            continue
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != info.name:
                continue
            if inspect.isclass(value):
                for method_name, method in vars(value).items():
                    is_public = not method_name.startswith("_") or method_name == "__call__"
                    if is_public and inspect.isfunction(method):
                        yield f"{info.name}.{name}.{method_name}", method
            elif callable(value) and not isinstance(value, type):
                yield f"{info.name}.{name}", inspect.unwrap(value)


def array_types(hint: object) -> Iterator[object]:
    """The array types in a type hint, bare or with a shape.

    Not those of functions that are arguments, or of a processor's batch, which is a dict of the
    inputs that transformers takes.
    """
    if hint == Batch or typing.get_origin(hint) is Callable:
        return
    if hint in (jax.Array, np.ndarray) or (
        inspect.isclass(hint) and issubclass(hint, AbstractArray)
    ):
        yield hint
    for part in typing.get_args(hint):
        yield from array_types(part)


def test_every_array_of_a_public_function_has_a_shape() -> None:
    bare, variadic, num_arrays = [], set(), 0
    for name, function in public_functions():
        # tensorstore and prompt_toolkit are imported where they are used.
        for argument, hint in typing.get_type_hints(
            function, None, {"TensorStore": object, "Completer": object}
        ).items():
            for found in array_types(hint):
                num_arrays += 1
                if found in (jax.Array, np.ndarray):
                    bare.append(f"{name}({argument})")
                elif "..." in found.dim_str:  # type: ignore[attr-defined]
                    variadic.add(name)
    assert num_arrays > 100
    assert not bare
    assert variadic == ANY_SHAPE & {name for name, _ in public_functions()}


B, T, D, V, N, H, A, P = 2, 6, 8, 16, 4, 4, 2, 3
FLOATS, IDS = jnp.zeros, lambda *shape: jnp.ones(shape, jnp.int32)
CALLS: dict[str, tuple[Callable, list]] = {
    "attention": (
        lambda q, k, v, q_ids, kv_ids: dot_product_attention(q, k, v, AttentionMask(q_ids, kv_ids)),
        [FLOATS((B, T, N, H))] * 3 + [IDS(B, T)] * 2,
    ),
    "apply_rope": (lambda x, p: apply_rope(x, p, 1e4), [FLOATS((B, T, N, H)), IDS(B, T)]),
    "segment_positions": (segment_positions, [IDS(B, T)]),
    "merge_audio_embeddings": (
        merge_audio_embeddings,
        [FLOATS((B, T, D)), jnp.zeros((B, T), bool), FLOATS((A, P, D)), IDS(A)],
    ),
    "log_mel": (LogMel(80), [FLOATS((A, 640))]),
    "log_mel_from_power": (lambda x: log_mel_from_power(x, 80), [FLOATS((A, 4, 201))]),
    "cross_entropy": (
        cross_entropy,
        [FLOATS((B, T, D)), FLOATS((D, V)), IDS(B, T), jnp.ones((B, T), bool)],
    ),
    "dpo_loss": (
        lambda *x: dpo_loss(DPOConfig(), *x),
        [FLOATS((B, T)), FLOATS((B,)), jnp.ones((B, T), bool)],
    ),
    "sample_tokens": (
        lambda logits, *x: sample_tokens(logits, *x, RowSettings.of([SamplingConfig()] * B)),
        [FLOATS((B, V)), jnp.zeros((B, V), bool), IDS(B, V), IDS(B)],
    ),
    "cached_attention": (
        lambda q, k, v, p: cached_attention(q, k, v, positions=p),
        [FLOATS((B, T, N, H)), FLOATS((B, N, 9, H)), FLOATS((B, N, 9, H)), IDS(B, T)],
    ),
}


@pytest.mark.parametrize(
    ("name", "index"),
    [(name, i) for name, (_, arrays) in CALLS.items() for i in range(len(arrays))],
)
def test_an_array_without_one_dimension_is_refused(name: str, index: int) -> None:
    function, arrays = CALLS[name]
    jax.block_until_ready(function(*arrays))
    arrays = [*arrays[:index], arrays[index][0], *arrays[index + 1 :]]
    with pytest.raises(TypeCheckError):
        function(*arrays)
