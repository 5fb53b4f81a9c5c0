"""From settings to a run that is ready to step: model, data, mesh, state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qa_jax import checkpoint, hf
from qa_jax.config import ModelConfig, RunConfig
from qa_jax.data import Processor, TrainData, load_tokenizer
from qa_jax.data.tokenizer import AUDIO, END_OF_TEXT, IM_END, Tokenizer
from qa_jax.errors import InputError
from qa_jax.model import Params, Qwen2Audio, declarations, flatten, initialize, nest
from qa_jax.parallel import batch_shards, make_mesh
from qa_jax.train.optimizer import make_optimizer, schedule, trainable
from qa_jax.train.sharding import refuse_replicated
from qa_jax.train.step import TrainState

VOCAB_MULTIPLE = 64
"""Fresh vocabularies are rounded up to this, so that any usual tensor axis divides them."""


class Run(NamedTuple):
    """A run before its first step; nothing has been computed, everything has been checked."""

    config: RunConfig
    model_config: ModelConfig
    model: Qwen2Audio
    processor: Processor
    data: TrainData
    eval_data: TrainData | None
    mesh: Mesh
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    trained: Params
    text_source: Path


def prepare(config: RunConfig, devices: Sequence[jax.Device] | None = None) -> Run:
    """Checks every setting, file and record of a run; raises InputError for the first bad one.

    `devices` are all there are unless named.
    """
    if not config.data.train:
        raise InputError("data.train", "no manifest named", "pass --data.train MANIFEST")
    source = Path(config.train.init or config.data.tokenizer)
    tokenizer = load_tokenizer(source) if str(source) != "." else None
    if tokenizer is None:
        raise InputError(
            str(source) if str(source) != "." else "data.tokenizer",
            "no tokenizer here",
            "name a directory that holds one, or train one: qa-jax tokenizer",
        )
    model_config = _model_config(config, tokenizer)
    _check_resumable(config, model_config)
    mesh = make_mesh(config.mesh, devices)
    refuse_replicated(model_config, mesh)
    processor = Processor(tokenizer, config.data.long_audio)
    groups = batch_shards(mesh)
    data = TrainData(
        config.data,
        processor,
        accumulate=config.optimizer.accumulate,
        length_exponent=config.train.length_exponent,
        groups=groups,
    )
    eval_data = None
    if config.data.eval:
        held_out = dataclasses.replace(config.data, train=config.data.eval)
        eval_data = TrainData(held_out, processor, groups=groups)
    model = Qwen2Audio(model_config)
    return Run(
        config=config,
        model_config=model_config,
        model=model,
        processor=processor,
        data=data,
        eval_data=eval_data,
        mesh=mesh,
        optimizer=make_optimizer(config.optimizer, config.train.steps, model),
        learning_rate=schedule(config.optimizer, config.train.steps),
        trained=trainable(nest(declarations(model)), config.optimizer.freeze),
        text_source=source,
    )


def _model_config(config: RunConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model's configuration: the initial checkpoint's, or the settings' with the tokenizer's
    vocabulary."""
    if config.train.init:
        if checkpoint.is_checkpoint(config.train.init):
            found = checkpoint.read_config(config.train.init)
        else:
            found, _ = hf.open_model(config.train.init)
        return dataclasses.replace(found, dtype=config.model.dtype, remat=config.model.remat)
    vocab = -(-tokenizer.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return dataclasses.replace(
        config.model,
        text=dataclasses.replace(config.model.text, vocab_size=vocab),
        audio_token_id=tokenizer.id_of(AUDIO),
        eos_token_ids=(tokenizer.id_of(IM_END), tokenizer.id_of(END_OF_TEXT)),
    )


def _check_resumable(config: RunConfig, model_config: ModelConfig) -> None:
    output = config.train.output
    if checkpoint.is_checkpoint(output) and checkpoint.read_config(output) != model_config:
        raise InputError(
            output,
            "holds a run of another model",
            "name another train.output, or the settings of that run",
        )


def initial_params(run: Run) -> Params:
    """Parameters to start from, float32 and placed on the mesh: fresh or the checkpoint's."""
    config, train = run.model_config, run.config.train
    places = jax.tree.map(lambda x: x.sharding, checkpoint.abstract_params(config, run.mesh))
    if not train.init:

        def fresh(key: jax.Array) -> Params:
            params = initialize(run.model, key)
            encoder = params["encoder"]
            for conv in ("conv1", "conv2"):
                encoder[conv]["kernel"] *= train.conv_gain
            encoder["embed_positions"] *= train.position_scale
            return params

        return jax.jit(fresh, out_shardings=places)(jax.random.key(train.seed))
    if checkpoint.is_checkpoint(train.init):
        return checkpoint.load_params(train.init, config, run.mesh, jnp.float32)
    _, tensors = hf.open_model(train.init)
    return hf.load_params(tensors, config, places, jnp.float32)


def initial_state(run: Run) -> TrainState:
    """The state of step 0."""
    params = initial_params(run)
    places = optimizer_places(run.optimizer, run.mesh, params)
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), NamedSharding(run.mesh, PartitionSpec())),
        params=params,
        optimizer=jax.jit(run.optimizer.init, out_shardings=places)(params),
    )


def optimizer_places(optimizer: optax.GradientTransformation, mesh: Mesh, params: Any) -> Any:
    """Where the optimizer's state lies: moments beside their parameters, counters everywhere."""
    places = {"/".join(path): x.sharding for path, x in flatten(params).items()}
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(path: Any, _: Any) -> NamedSharding:
        names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        # optax.partition puts its labels first; what remains is the parameter's own path.
        tails = ("/".join(names[i:]) for i in range(len(names)))
        return next((places[tail] for tail in tails if tail in places), everywhere)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))


def abstract_state(
    model_config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, types and places of the state, for restoring one or for compiling a step."""
    params = checkpoint.abstract_params(model_config, mesh)
    moments = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(optimizer.init, params),
        optimizer_places(optimizer, mesh, params),
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere), params, moments)
