"""The small Python API: load a model, ask it for logits, tokens or text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qa_jax.config import Dtype, ModelConfig, read_json
from qa_jax.data import Batch, Processor, load_tokenizer
from qa_jax.data.chat import Message
from qa_jax.data.tokenizer import END_OF_TEXT, IM_END
from qa_jax.errors import InputError
from qa_jax.generate import Engine, Sampling, from_generation_config
from qa_jax.model import Params
from qa_jax.parallel import batch_shards
from qa_jax.weights import load_weights, merged

_SMALL = 2**28
"""Parameters under which a processor runs the layers one by one: faster, for a copy of them."""


class LoadedModel:
    """A model ready to answer; made by `qa_jax.load`.

    Attributes:
        config: the model's configuration.
        params: its parameters, a nested dict of arrays.
        processor: makes batches of text and sound; None where the checkpoint has no tokenizer.
        defaults: how answers are sampled unless a call says otherwise: generation_config.json's
            settings where there is one, else greedy.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        processor: Processor | None,
        defaults: Sampling,
        mesh: Mesh | None = None,
    ) -> None:
        self.config, self.params, self.processor = config, params, processor
        self.defaults, self.mesh = defaults, mesh
        self._engine = Engine(config, params, batch_shards(mesh))

    def logits(self, batch: dict[str, Any]) -> np.ndarray:
        """Scores of the next token at every position.

        Args:
            batch: what `processor` returns, or transformers' input_ids, attention_mask,
                input_features and feature_attention_mask.

        Returns:
            (B, T, V) float32 (float64 for a model loaded so). At padding they mean nothing.
        """
        with self._on_mesh():
            return self._engine.logits(batch)

    def generate(self, batch: dict[str, Any], **settings: Any) -> list[list[int]]:
        """Answers a batch.

        Args:
            batch: as for `logits`.
            settings: fields of `Sampling` that differ from `defaults`: max_new_tokens,
                temperature (0 is greedy), top_k, top_p, repetition_penalty, min_new_tokens,
                stop_ids, seed.

        Returns:
            Each row's new token ids, up to and with the stop id that ended it. A row's answer
            does not depend on the rows beside it.
        """
        how = self._sampling(settings)
        with self._on_mesh():
            return self._engine.generate(batch, how)

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[False] = False, **settings: Any
    ) -> str: ...
    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[True], **settings: Any
    ) -> Iterator[str]: ...
    def chat(
        self, messages: Sequence[Message], *, stream: bool = False, **settings: Any
    ) -> str | Iterator[str]:
        """Answers a conversation.

        Args:
            messages: see `qa_jax.data.chat.render`; a last user turn of audio alone is voice chat.
            stream: whether to return an iterator of pieces of text as they come.
            settings: as for `generate`.
        """
        return self.answer(self._processor().apply_chat(messages), stream=stream, **settings)

    def answer(self, batch: Batch, *, stream: bool = False, **settings: Any) -> Any:
        """The answer to a batch of one row as text, or as an iterator of pieces of it."""
        how = self._sampling(settings)
        if stream:
            return self._pieces(batch, how)
        with self._on_mesh():
            return self._processor().tokenizer.decode(self._engine.generate(batch, how)[0])

    def _pieces(self, batch: Batch, how: Sampling) -> Iterator[str]:
        tokenizer, said = self._processor().tokenizer, ""
        ids: list[int] = []
        for new in self._engine.stream(batch, how):
            ids += new[0]
            text = tokenizer.decode(ids)
            # A character may span tokens: its first bytes alone decode to U+FFFD, so they wait.
            if len(text) > len(said) and not text.endswith("\ufffd"):
                yield text[len(said) :]
                said = text
        rest = tokenizer.decode(ids)[len(said) :]
        if rest:
            yield rest

    def _sampling(self, settings: dict[str, Any]) -> Sampling:
        known = {f.name for f in dataclasses.fields(Sampling)}
        for name in settings:
            if name not in known:
                raise InputError(name, "no such setting of generation", ", ".join(sorted(known)))
        if "stop_ids" in settings:
            settings["stop_ids"] = tuple(settings["stop_ids"])
        return dataclasses.replace(self.defaults, **settings)

    def _processor(self) -> Processor:
        if self.processor is None:
            raise InputError(
                "processor", "the checkpoint has no tokenizer", "put its files beside the weights"
            )
        return self.processor

    def _on_mesh(self) -> Any:
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def load(
    directory: str | Path,
    dtype: Dtype | None = "float32",
    mesh: Mesh | None = None,
    *,
    step: int | None = None,
    long_audio: str = "error",
    adapter: str | Path | None = None,
) -> LoadedModel:
    """Loads a qa_jax checkpoint, a Hugging Face directory, or an adapter of ours with its model.

    Args:
        directory: of any kind; of a training run, the latest step is taken.
        dtype: what parameters are held and computed in: "float32", "bfloat16", or "float64" (which
            needs JAX_ENABLE_X64=1). None keeps the stored type.
        mesh: where the parameters shall lie, from `qa_jax.parallel.make_mesh`; one device without.
        step: which step of a training run.
        long_audio: what to do with clips over 30 s: "error" or "truncate".
        adapter: a LoRA adapter to be merged in, ours or PEFT's.
    """
    directory = Path(directory)
    if dtype == "float64" and jnp.zeros(0, float).dtype != jnp.float64:
        raise InputError("dtype float64", "JAX computes in 32 bits", "set JAX_ENABLE_X64=1")
    if dtype not in (None, "float32", "bfloat16", "float64"):
        raise InputError("dtype", f"{dtype!r}", "float32, bfloat16 or float64")
    target = None if dtype is None else jnp.dtype(dtype)
    config, params = load_weights(directory, mesh, target, step)
    if adapter is not None:
        params = merged(params, adapter, config)
    table = params["decoder"]["embed_tokens"]
    stored: Any = str(table.dtype)
    small = sum(x.size for x in jax.tree.leaves(params)) < _SMALL
    config = dataclasses.replace(
        config,
        dtype=dtype or stored,
        remat="none",
        attention="auto",
        unroll=small and next(iter(table.devices())).platform == "cpu",
    )
    tokenizer = load_tokenizer(directory)
    processor = None if tokenizer is None else Processor(tokenizer, long_audio)
    return LoadedModel(config, params, processor, _defaults(directory, config, tokenizer), mesh)


def _defaults(directory: Path, config: ModelConfig, tokenizer: Any) -> Sampling:
    """generation_config.json's settings; without its stop ids, whatever ends a turn or a text."""
    path = directory / "generation_config.json"
    given = from_generation_config(read_json(path)) if path.is_file() else {}
    if "stop_ids" not in given:
        ends = () if tokenizer is None else (tokenizer.id_of(IM_END), tokenizer.id_of(END_OF_TEXT))
        given["stop_ids"] = ends or config.eos_token_ids
    return Sampling(**given)
