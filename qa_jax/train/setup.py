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

from qa_jax import checkpoint, weights
from qa_jax.config import LoraConfig, ModelConfig, RunConfig
from qa_jax.data import Processor, TrainData, load_tokenizer
from qa_jax.data.tokenizer import AUDIO, END_OF_TEXT, IM_END, Tokenizer
from qa_jax.errors import InputError
from qa_jax.model import (
    Params,
    Qwen2Audio,
    adapt,
    flatten,
    held_as_declared,
    initialize,
    is_adapter_path,
    join,
    nest,
    split,
)
from qa_jax.parallel import batch_shards, make_mesh
from qa_jax.train.objectives import Objective, answers, preferences
from qa_jax.train.optimizer import make_optimizer, schedule, trainable
from qa_jax.train.sharding import refuse_replicated
from qa_jax.train.step import Step, TrainState, make_step

VOCAB_MULTIPLE = 64
"""Fresh vocabularies are rounded up to this, so that any usual tensor axis divides them."""


class Models(NamedTuple):
    """A model as it is trained, and what goes with it.

    Attributes:
        model: with its adapters, where it has some.
        base: without them, its parameters held in the same way.
        dropping: with keys for dropout; None without dropout.
        adapted: paths of the layers with an adapter.
    """

    model: Qwen2Audio
    base: Qwen2Audio
    dropping: Qwen2Audio | None
    adapted: tuple[tuple[str, ...], ...]


def make_models(config: ModelConfig, lora: LoraConfig) -> Models:
    """The models of a run; raises InputError for a pattern of layers that matches none."""
    if not lora.layers:
        plain = Qwen2Audio(config)
        return Models(plain, plain, None, ())
    model, base, dropping = (Qwen2Audio(config) for _ in range(3))
    adapted = adapt(model, lora)
    adapt(base, lora, adapters=False)
    adapt(dropping, lora, dropping=True)
    return Models(model, base, dropping if lora.dropout else None, adapted)


def make_objective(config: RunConfig, models: Models, groups: int) -> Objective:
    """What a run minimizes."""
    if config.train.objective == "answers":
        return answers(models.model, models.dropping, groups)
    return preferences(config.preference, models.model, models.base, models.dropping, groups)


def make_run_step(
    config: RunConfig, models: Models, optimizer: optax.GradientTransformation, groups: int
) -> Step:
    """The step of a run, to be jitted by `jit_step`."""
    return make_step(
        make_objective(config, models, groups),
        optimizer,
        trainable(models.model, config.optimizer.freeze),
        schedule(config.optimizer, config.train.steps),
        average=config.train.average,
        seed=config.train.seed if models.dropping is not None else None,
        narrow=config.optimizer.gradients == "bfloat16",
    )


class Run(NamedTuple):
    """A run before its first step; nothing has been computed, everything has been checked.

    Attributes:
        models: the model, and its likes for dropout and for reference.
        trained: a tree of bools.
    """

    config: RunConfig
    model_config: ModelConfig
    models: Models
    processor: Processor
    data: TrainData
    eval_data: TrainData | None
    mesh: Mesh
    optimizer: optax.GradientTransformation
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
    models = make_models(model_config, config.lora)
    _check_settings(config)
    _check_resumable(config, model_config, models)
    mesh = make_mesh(config.mesh, devices)
    refuse_replicated(models.model, mesh)
    processor = Processor(tokenizer, config.data.long_audio)
    groups, pairs = batch_shards(mesh), config.train.objective == "preferences"
    data = TrainData(
        config.data,
        processor,
        accumulate=config.optimizer.accumulate,
        length_exponent=config.train.length_exponent,
        groups=groups,
        pairs=pairs,
    )
    eval_data = None
    if config.data.eval:
        held_out = dataclasses.replace(config.data, train=config.data.eval)
        eval_data = TrainData(held_out, processor, groups=groups, pairs=pairs)
    return Run(
        config=config,
        model_config=model_config,
        models=models,
        processor=processor,
        data=data,
        eval_data=eval_data,
        mesh=mesh,
        optimizer=make_optimizer(config.optimizer, config.train.steps, models.model),
        trained=trainable(models.model, config.optimizer.freeze),
        text_source=source,
    )


def _model_config(config: RunConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The model's configuration: the initial checkpoint's, or the settings' with the tokenizer's
    vocabulary."""
    if config.train.init:
        found = weights.read_config(config.train.init)
        how = config.model
        return dataclasses.replace(found, dtype=how.dtype, remat=how.remat, attention=how.attention)
    vocab = -(-tokenizer.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return dataclasses.replace(
        config.model,
        text=dataclasses.replace(config.model.text, vocab_size=vocab),
        audio_token_id=tokenizer.id_of(AUDIO),
        eos_token_ids=(tokenizer.id_of(IM_END), tokenizer.id_of(END_OF_TEXT)),
    )


def _check_settings(config: RunConfig) -> None:
    """Raises InputError for settings that do not go together."""
    if config.lora.layers and not config.train.init:
        raise InputError(
            "lora.layers", "adapters of a fresh model learn little", "name its base with train.init"
        )
    if config.optimizer.gradients == "bfloat16" and config.model.dtype != "bfloat16":
        raise InputError(
            "optimizer.gradients", "bfloat16 is for models computed in it", "set model.dtype"
        )
    if not 0 <= config.train.average < 1:
        raise InputError("train.average", f"{config.train.average} is not in [0, 1)")
    if config.train.objective == "preferences":
        if not config.train.init:
            raise InputError(
                "train.objective", "preferences start from a model", "name it with train.init"
            )
        if config.train.length_exponent:
            raise InputError(
                "train.length_exponent", "is of answers", "set it to 0, or preference.per_token"
            )
        if config.data.pack_tokens:
            raise InputError("data.pack_tokens", "pairs are not packed", "set it to 0")


def adapter_card(
    config: RunConfig, model_config: ModelConfig, models: Models
) -> checkpoint.AdapterCard:
    """What is written of a run's adapter."""
    init = Path(config.train.init)
    base = str(init.resolve()) if init.is_dir() else config.train.init
    return checkpoint.AdapterCard(
        base, {path: config.lora.scale for path in models.adapted}, model_config
    )


def _check_resumable(config: RunConfig, model_config: ModelConfig, models: Models) -> None:
    output = config.train.output
    same = True
    if checkpoint.is_checkpoint(output):
        same = not config.lora.layers and checkpoint.read_config(output) == model_config
    elif checkpoint.is_adapter(output):
        card = checkpoint.read_adapter(output)
        same = bool(config.lora.layers) and card == adapter_card(config, model_config, models)
    if not same:
        raise InputError(
            output,
            "holds a run of another model",
            "name another train.output, or the settings of that run",
        )


def initial_params(run: Run) -> Params:
    """Parameters to start from, placed on the mesh: fresh ones or those of `train.init` in float32;
    under LoRA those as the base is held, and fresh adapters."""
    train, models = run.config.train, run.models
    if not train.init:
        places = _places(checkpoint.abstract_params(models.model, run.mesh))

        def fresh(key: jax.Array) -> Params:
            params = initialize(models.model, key)
            encoder = params["encoder"]
            for conv in ("conv1", "conv2"):
                encoder[conv]["kernel"] *= train.conv_gain
            encoder["embed_positions"] *= train.position_scale
            return params

        return jax.jit(fresh, out_shardings=places)(jax.random.key(train.seed))
    if not models.adapted:
        return weights.load_weights(train.init, run.mesh, jnp.float32)[1]
    places = _places(abstract_adapter(run))

    def adapters(key: jax.Array) -> Params:
        return initialize(models.model, key, wanted=is_adapter_path)

    low = jax.jit(adapters, out_shardings=places)(jax.random.key(train.seed))
    return join(held_base(run), low)


def held_base(run: Run) -> Params:
    """The base of a run's adapters, as `lora.base` says."""
    loaded = jnp.float32 if run.config.lora.base == "float32" else jnp.bfloat16
    # Handed over without a name here, so that each array is let go as soon as its like is made.
    return held_as_declared(
        run.models.base, weights.load_weights(run.config.train.init, run.mesh, loaded)[1]
    )


def abstract_adapter(run: Run) -> Params:
    """Shapes, types and places of a run's adapters alone."""
    flat = flatten(checkpoint.abstract_params(run.models.model, run.mesh))
    return nest({path: x for path, x in flat.items() if is_adapter_path(path)})


def _places(abstract: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, abstract)


def initial_state(run: Run) -> TrainState:
    """The state of step 0."""
    params = initial_params(run)
    moving, _ = split(params, run.trained)
    places = optimizer_places(run.optimizer, run.mesh, moving)
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), NamedSharding(run.mesh, PartitionSpec())),
        params=params,
        optimizer=jax.jit(run.optimizer.init, out_shardings=places)(moving),
        average=jax.tree.map(jnp.copy, moving) if run.config.train.average else None,
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
    config: RunConfig, models: Models, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, types and places of the state, for restoring one or for compiling a step."""
    params = checkpoint.abstract_params(models.model, mesh)
    moving, _ = split(params, trainable(models.model, config.optimizer.freeze))
    moments = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(optimizer.init, moving),
        optimizer_places(optimizer, mesh, moving),
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(step, params, moments, moving if config.train.average else None)
