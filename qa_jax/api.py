"""The Python API: load a model, compute logits, generate tokens or text."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from qa_jax.checkpoint import load_weights, merge_adapter, read_model_config, split_step
from qa_jax.config import (
    Dtype,
    JsonDict,
    ModelConfig,
    SamplingConfig,
    from_generation_config,
    read_json,
)
from qa_jax.data import AudioSource, Batch, Message, Processor, Tokenizer, load_tokenizer
from qa_jax.data.questions import Question
from qa_jax.data.tokenizer import END_OF_TEXT, IM_END
from qa_jax.data.windows import WINDOW_SECONDS
from qa_jax.errors import InputError
from qa_jax.generate import (
    Engine,
    Summary,
    answer_questions,
    choose_dtypes,
    requests_of_batch,
    use_persistent_cache,
)
from qa_jax.generate.inputs import UserBatch
from qa_jax.generate.transcripts import Transcript, window_requests
from qa_jax.paths import AnyPath, PathLike, as_path
from qa_jax.terminal import Progress
from qa_jax.typing import DType, Float, Params


class LoadedModel:
    """A model ready for inference; made by `qa_jax.load`.

    Attributes:
        config: the model's configuration.
        params: its parameters, a nested dict of arrays.
        processor: makes batches of text and audio; None for a checkpoint without a tokenizer.
        default_sampling: settings of generation that a call does not give: those of
            generation_config.json, or greedy.
        mesh: the parameters' mesh, or None for one device.
        engine: what answers.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        processor: Processor | None,
        default_sampling: SamplingConfig,
        engine: Engine,
    ) -> None:
        self.config, self.params, self.processor = config, params, processor
        self.default_sampling, self.engine = default_sampling, engine
        self.mesh = engine.mesh

    def logits(self, batch: UserBatch) -> Float[np.ndarray, "B T V"]:
        """Logits of the next token at every position; those at padding are meaningless.

        Args:
            batch: of `processor`, or transformers' input_ids, attention_mask, input_features and
                feature_attention_mask.

        Returns:
            float32 (float64 for a float64 model).
        """
        return self.engine.logits(batch)

    def generate(self, batch: UserBatch, **settings: Any) -> list[list[int]]:
        """Generates an answer for each row of a batch.

        Args:
            batch: as for `logits`.
            settings: fields of `SamplingConfig` that differ from `default_sampling`:
                max_new_tokens, temperature (0 is greedy), top_k, top_p, repetition_penalty,
                min_new_tokens, stop_ids, seed.

        Returns:
            Each row's new token ids, including the stop id that ended it. Outputs do not depend on
            the other rows of the batch.
        """
        return self.engine.generate(batch, self.sampling_config(settings))

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
            messages: see `qa_jax.data.apply_chat_template`; a last user turn of audio alone is
                voice chat.
            stream: whether to return an iterator over the text as it is generated.
            settings: as for `generate`.
        """
        batch = self.require_processor().apply_chat_template(messages)
        return self.answer(batch, stream=stream, **settings)

    def answer(self, batch: Batch, *, stream: bool = False, **settings: Any) -> Any:
        """The answer to a batch of one row as text, or as an iterator over its parts."""
        parts = self._stream_text(batch, self.sampling_config(settings))
        return parts if stream else "".join(parts)

    def answer_questions(
        self,
        questions: Sequence[Question],
        output: str | Path,
        *,
        field: str = "text",
        window_seconds: float | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Summary:
        """Answers many questions into a JSONL file; see `qa_jax.generate.answer_questions`."""
        return answer_questions(
            self.engine,
            self.require_processor(),
            questions,
            self.sampling_config(settings),
            output,
            field=field,
            model_name=self.fingerprint,
            window_seconds=window_seconds,
            progress=progress,
        )

    def transcribe(
        self,
        audio: AudioSource,
        instruction: str = "Transcribe.",
        *,
        raw: bool = False,
        window_seconds: float = WINDOW_SECONDS,
        **settings: Any,
    ) -> Transcript:
        """The text of a clip of any length, with times.

        Args:
            audio: anything that `qa_jax.data.load_audio` accepts.
            instruction: the text beside each window.
            raw: without a chat template; for the base model, with the instruction "Detect the
                language and recognize the speech: <|en|>".
            window_seconds: the longest window, at most 30.
            settings: as for `generate`.
        """
        processor = self.require_processor()
        windows = window_requests(
            processor.load([audio], long_audio="window")[0],
            instruction,
            processor,
            self.config,
            self.sampling_config(settings),
            raw=raw,
            max_seconds=window_seconds,
        )
        answers = {answer.request: answer for answer in self.engine.run(w.request for w in windows)}
        return Transcript.of(windows, [answers[window.request] for window in windows])

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the configuration and of some of each parameter's values."""
        state = hashlib.sha256(repr(self.config).encode())
        for array in jax.tree.leaves(self.params):
            part = array.addressable_data(0)
            state.update(np.asarray(part[(slice(0, 2),) * part.ndim]).tobytes())
        return state.hexdigest()[:16]

    def _stream_text(self, batch: Batch, sampling: SamplingConfig) -> Iterator[str]:
        decode = self.require_processor().tokenizer.decode
        request = requests_of_batch(batch, self.config, sampling, decode)[0]
        answer, length = self.engine.submit(request), 0
        try:
            while answer.finish_reason is None:
                self.engine.step()
                if len(answer.text) > length:
                    yield answer.text[length:]
                    length = len(answer.text)
        finally:
            self.engine.cancel(answer)  # of a reader who went away

    def sampling_config(self, settings: JsonDict) -> SamplingConfig:
        """The checkpoint's sampling settings with some changed; raises InputError for an unknown
        name."""
        known = {f.name for f in dataclasses.fields(SamplingConfig)}
        for name in settings:
            if name not in known:
                raise InputError(name, "no such generation setting", ", ".join(sorted(known)))
        for name in ("stop_ids", "stop"):
            if name in settings:
                settings[name] = tuple(settings[name])
        return dataclasses.replace(self.default_sampling, **settings)

    def with_adapter(self, adapter: PathLike) -> LoadedModel:
        """The same model with a LoRA adapter of qa_jax or PEFT merged in. It has an engine of its
        own; programs, and all parameters that the adapter leaves alone, are shared. Raises
        InputError for an adapter of another model, or int8 weights."""
        config, engine = self.config, self.engine
        if config.weights != "float":
            raise InputError(
                adapter, f"cannot be merged into {config.weights} weights", "load them as floats"
            )
        params = merge_adapter(self.params, adapter, config, donate=False)
        own = Engine(
            config,
            params,
            self.mesh,
            num_slots=engine.num_slots,
            capacity=engine.buckets.capacity,
            cache_dtype=engine.cache_dtype,
            programs=engine.programs,
        )
        return LoadedModel(config, params, self.processor, self.default_sampling, own)

    def require_processor(self) -> Processor:
        """The processor; raises InputError for a checkpoint without a tokenizer."""
        if self.processor is None:
            raise InputError(
                "processor", "the checkpoint has no tokenizer", "copy its files beside the weights"
            )
        return self.processor


def load(
    directory: PathLike,
    dtype: Dtype | None = None,
    mesh: Mesh | None = None,
    *,
    step: int | None = None,
    long_audio: str = "error",
    audio_hosts: Sequence[str] = (),
    adapter: PathLike | None = None,
    weights: Literal["float", "int8"] | None = None,
    num_slots: int | None = None,
    capacity: int | None = None,
    cache_dtype: DType = None,
) -> LoadedModel:
    """Loads a qa_jax checkpoint, a Hugging Face directory, or a qa_jax adapter with its base model.

    Compiled programs are kept, see `use_persistent_cache`.

    Args:
        directory: of any of these; of a training run, the latest step is loaded.
        dtype: of parameters and computation; "float64" needs JAX_ENABLE_X64=1. By default bfloat16
            on accelerators, float32 on CPUs, with bfloat16 parameters if memory has little room.
        mesh: from `qa_jax.parallel.make_mesh`; one device without.
        step: which step of a training run.
        long_audio, audio_hosts: see `Processor`.
        adapter: a LoRA adapter to merge in, of qa_jax or PEFT.
        weights: "int8" for linear layers in 8 bits; default: as stored.
        num_slots, capacity, cache_dtype: see `Engine`.

    Raises:
        InputError: for a directory or dtype that cannot be used, or too little memory.
    """
    name, named_step = split_step(directory)
    directory, step = as_path(name), named_step if step is None else step
    if dtype == "float64" and jnp.zeros(0, float).dtype != jnp.float64:
        raise InputError("dtype float64", "JAX is in 32-bit mode", "set JAX_ENABLE_X64=1")
    if dtype not in (None, *get_args(Dtype)):
        raise InputError("dtype", f"{dtype!r}", f"give one of {get_args(Dtype)}")
    use_persistent_cache()
    config = read_model_config(directory)
    config = dataclasses.replace(config, weights=weights or config.weights)
    placement = choose_dtypes(config, dtype, mesh)
    config, params = load_weights(
        directory, mesh, jnp.dtype(placement.param_dtype), step, adapter=adapter, weights=weights
    )
    config = for_inference(dataclasses.replace(config, dtype=placement.compute_dtype))
    tokenizer = load_tokenizer(directory)
    processor = None if tokenizer is None else Processor(tokenizer, long_audio, audio_hosts)
    sampling = _default_sampling(directory, config, tokenizer)
    engine = Engine(
        config, params, mesh, num_slots=num_slots, capacity=capacity, cache_dtype=cache_dtype
    )
    return LoadedModel(config, params, processor, sampling, engine)


def _default_sampling(
    directory: AnyPath, config: ModelConfig, tokenizer: Tokenizer | None
) -> SamplingConfig:
    """generation_config.json's settings; without its stop ids, the ends of a turn and of a text."""
    path = directory / "generation_config.json"
    fields = from_generation_config(read_json(path)) if path.exists() else {}
    if "stop_ids" not in fields:
        fields["stop_ids"] = config.eos_token_ids if tokenizer is None else end_ids(tokenizer)
    return SamplingConfig(**fields)


def for_inference(config: ModelConfig) -> ModelConfig:
    """A model's configuration without what is for training alone."""
    # Unrolled, XLA copies the whole cache in every layer.
    return dataclasses.replace(config, remat="none", attention_impl="auto", unroll_layers=False)


def end_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer: of a turn, and of a text."""
    return tokenizer.id_of(IM_END), tokenizer.id_of(END_OF_TEXT)
