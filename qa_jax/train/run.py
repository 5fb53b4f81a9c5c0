"""Preparing a run: from settings to models, data, mesh and optimizer, all checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from qa_jax import checkpoint
from qa_jax.config import ModelConfig, RunConfig, preset
from qa_jax.data import Processor, Tokenizer, TrainDataset, load_tokenizer
from qa_jax.data.tokenizer import AUDIO, END_OF_TEXT, IM_END
from qa_jax.errors import InputError
from qa_jax.parallel import make_mesh, num_batch_shards
from qa_jax.paths import AnyPath, as_path, is_remote
from qa_jax.train.augment import augment_batch
from qa_jax.train.models import PolicyModels, make_models
from qa_jax.train.objectives import Objective, make_objective, objective_class
from qa_jax.train.optimizer import make_optimizer, make_schedule, make_trainable_mask
from qa_jax.train.sharding import check_sufficiently_sharded
from qa_jax.train.step import TrainStep, make_train_step
from qa_jax.typing import Params

VOCAB_MULTIPLE = 64
"""Vocabularies of models trained from scratch are rounded up to a multiple of this, which every
usual tensor axis divides."""


class TrainingRun(NamedTuple):
    """A run before its first step: everything is checked, nothing is computed.

    Attributes:
        config: its settings.
        model_config: the model's, with the tokenizer's vocabulary.
        models: policy, variant with dropout, and base.
        objective: what is minimised.
        processor: makes batches.
        data: the training records.
        eval_data: held-out records, by the prefix of their metrics.
        mesh: the device mesh.
        optimizer: of the trainable parameters.
        trainable_mask: a tree of bools.
        tokenizer_dir: directory of the tokenizer's files.
    """

    config: RunConfig
    model_config: ModelConfig
    models: PolicyModels
    objective: Objective
    processor: Processor
    data: TrainDataset
    eval_data: dict[str, TrainDataset]
    mesh: Mesh
    optimizer: optax.GradientTransformation
    trainable_mask: Params
    tokenizer_dir: AnyPath


def prepare(config: RunConfig, devices: Sequence[jax.Device] | None = None) -> TrainingRun:
    """Checks every setting, file and record of a run, on all devices by default.

    Raises InputError for the first that cannot be used.
    """
    if config.train.compile_cache_dir:
        jax.config.update("jax_compilation_cache_dir", config.train.compile_cache_dir)
    tokenizer_dir, tokenizer = find_tokenizer(config)
    model_config = make_model_config(config, tokenizer)
    models = make_models(model_config, config.lora)
    check_config(config)
    check_output_dir(config, model_config, models)
    mesh = make_mesh(config.mesh, devices)
    check_sufficiently_sharded(models.policy, mesh)
    objective = make_objective(config, models, num_batch_shards(mesh))
    processor = Processor(tokenizer, config.data.long_audio)
    data, eval_data = make_datasets(config, processor, objective)
    return TrainingRun(
        config=config,
        model_config=model_config,
        models=models,
        objective=objective,
        processor=processor,
        data=data,
        eval_data=eval_data,
        mesh=mesh,
        optimizer=make_run_optimizer(config, models),
        trainable_mask=make_trainable_mask(models.policy, config.optimizer.freeze),
        tokenizer_dir=tokenizer_dir,
    )


def find_tokenizer(config: RunConfig) -> tuple[AnyPath, Tokenizer]:
    """The tokenizer of `train.init_from`, or of `data.tokenizer`, and its directory."""
    if not config.data.train:
        raise InputError("data.train", "no manifest named", "pass --data.train MANIFEST")
    source = checkpoint.split_step(config.train.init_from)[0] or config.data.tokenizer
    tokenizer = load_tokenizer(source) if source else None
    if tokenizer is None:
        raise InputError(
            source or "data.tokenizer",
            "no tokenizer here",
            "name a directory that contains one, or train one: qa-jax tokenizer",
        )
    return as_path(source), tokenizer


def make_model_config(config: RunConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The initial checkpoint's model configuration, or the settings' with the tokenizer's
    vocabulary."""
    if config.train.init_from:
        found = checkpoint.read_model_config(config.train.init_from)
        check_same_model(config, found)
        model = config.model
        return dataclasses.replace(
            found,
            dtype=model.dtype,
            remat=model.remat,
            attention_impl=model.attention_impl,
            unroll_layers=model.unroll_layers,
        )
    vocab_size = -(-tokenizer.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return dataclasses.replace(
        config.model,
        text=dataclasses.replace(config.model.text, vocab_size=vocab_size),
        audio_token_id=tokenizer.id_of(AUDIO),
        eos_token_ids=(tokenizer.id_of(IM_END), tokenizer.id_of(END_OF_TEXT)),
    )


def check_same_model(config: RunConfig, found: ModelConfig) -> None:
    """Raises InputError for a setting of the model's shape that the initial checkpoint cannot have.

    Values of the preset that the recipe leaves as they are count for nothing, as the vocabulary
    does, which is the tokenizer's.
    """
    default = preset(config.preset)
    for section in ("audio", "text"):
        parts = (getattr(m, section) for m in (config.model, default, found))
        given, usual, theirs = (dataclasses.asdict(part) for part in parts)
        for name, value in given.items():
            if name != "vocab_size" and value != usual[name] and value != theirs[name]:
                raise InputError(
                    f"model.{section}.{name}",
                    f"is {value}, and train.init_from is a model with {theirs[name]}",
                    "remove the setting: the checkpoint decides the model's shape",
                )


def check_config(config: RunConfig) -> None:
    """Raises InputError for settings that cannot be combined."""
    if config.lora.target_modules and not config.train.init_from:
        raise InputError(
            "lora.target_modules", "needs a base model", "name it with train.init_from"
        )
    if config.optimizer.grad_dtype == "bfloat16" and config.model.dtype != "bfloat16":
        raise InputError(
            "optimizer.grad_dtype", "bfloat16 needs a bfloat16 model", "set model.dtype"
        )
    if not 0 <= config.train.ema_decay < 1:
        raise InputError("train.ema_decay", f"{config.train.ema_decay} is not in [0, 1)")
    if config.train.best_metric and not config.data.eval:
        raise InputError("train.best_metric", "nothing is evaluated", "name data.eval")
    is_other = bool(config.lora.target_modules) or config.train.objective != "sft"
    if config.train.eval_max_new_tokens and (is_other or jax.process_count() > 1):
        raise InputError(
            "train.eval_max_new_tokens",
            "needs one process, no LoRA, and train.objective sft",
            "set it to 0, and run qa-jax evaluate on the checkpoint",
        )
    if config.train.patience and not config.train.best_metric:
        raise InputError("train.patience", "needs a metric", "name train.best_metric")
    objective_class(config.train.objective).check_config(config)


def adapter_config(
    config: RunConfig, model_config: ModelConfig, models: PolicyModels
) -> checkpoint.AdapterConfig:
    """The adapter.yaml of a LoRA run."""
    base = config.train.init_from
    base = str(Path(base).resolve()) if not is_remote(base) and Path(base).is_dir() else base
    scales = {path: config.lora.scale for path in models.lora_paths}
    return checkpoint.AdapterConfig(base, scales, model_config)


def check_output_dir(config: RunConfig, model_config: ModelConfig, models: PolicyModels) -> None:
    """Raises InputError if nothing may be written to the output directory, or if it contains
    something else than a run of this kind."""
    output_dir = config.train.output_dir
    as_path(output_dir)
    if models.lora_paths:
        is_other = checkpoint.is_checkpoint(output_dir)
    else:
        is_other = checkpoint.is_adapter(output_dir)
        if checkpoint.is_checkpoint(output_dir):
            found = checkpoint.read_config(output_dir)
            is_other = (found.audio, found.text) != (model_config.audio, model_config.text)
    steps = checkpoint.all_steps(output_dir)
    if is_other:
        raise InputError(
            output_dir,
            "contains a run of another model",
            "name another train.output_dir, or use the settings of that run",
        )
    if steps and config.train.resume == "none":
        raise InputError(
            output_dir, f"contains steps {steps}", "name another train.output_dir, or delete them"
        )
    if isinstance(config.train.resume, int):
        checkpoint.find_step(output_dir, config.train.resume)


def make_datasets(
    config: RunConfig, processor: Processor, objective: Objective
) -> tuple[TrainDataset, dict[str, TrainDataset]]:
    """Training and held-out records."""
    shards, num_completions = objective.num_batch_shards, objective.num_completions
    data = TrainDataset(
        config.data,
        processor,
        grad_accum_steps=config.optimizer.grad_accum_steps,
        length_exponent=config.train.length_exponent,
        num_batch_shards=shards,
        num_completions=num_completions,
        augment=config.augment,
    )
    eval_data = {
        name: TrainDataset(
            dataclasses.replace(config.data, train=path),
            processor,
            num_batch_shards=shards,
            num_completions=num_completions,
        )
        for name, path in config.data.eval_sets().items()
    }
    return data, eval_data


def make_run_optimizer(config: RunConfig, models: PolicyModels) -> optax.GradientTransformation:
    """The optimizer of a run."""
    return make_optimizer(
        config.optimizer, config.train.steps, models.policy, config.train.max_skipped_steps
    )


def make_run_step(
    config: RunConfig,
    models: PolicyModels,
    objective: Objective,
    optimizer: optax.GradientTransformation,
) -> TrainStep:
    """The step of a run, to be jitted by `jit_train_step`."""
    return make_train_step(
        objective,
        optimizer,
        make_trainable_mask(models.policy, config.optimizer.freeze),
        make_schedule(config.optimizer, config.train.steps),
        ema_decay=config.train.ema_decay,
        augment=partial(augment_batch, config.augment, models.policy.log_mel),
        dropout_seed=config.train.seed if models.policy_with_dropout is not None else None,
        grads_in_bf16=config.optimizer.grad_dtype == "bfloat16",
    )
