"""The state of a run: initial, abstract, saved and restored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qa_jax import checkpoint
from qa_jax.checkpoint import CheckpointManager
from qa_jax.config import JsonDict, RunConfig
from qa_jax.data.loader import BatchIterator
from qa_jax.lora import is_lora_path
from qa_jax.model import cast_to_param_dtypes, initialize
from qa_jax.parallel import barrier, check_shared_directory, is_main_process
from qa_jax.train.models import PolicyModels
from qa_jax.train.optimizer import make_trainable_mask
from qa_jax.train.run import TrainingRun, adapter_config
from qa_jax.train.step import TrainState
from qa_jax.trees import flatten_dict, merge_trees, partition, unflatten_dict
from qa_jax.typing import Params, PyTree


def initial_params(run: TrainingRun) -> Params:
    """Initial parameters on the mesh: random ones, or those of `train.init_from` in float32; with
    LoRA the base in its dtype, and random adapters."""
    train, models = run.config.train, run.models
    key = jax.random.key(train.seed)
    if not train.init_from:
        shardings = _shardings(checkpoint.abstract_params(models.policy, run.mesh))
        return jax.jit(lambda k: initialize(models.policy, k), out_shardings=shardings)(key)
    if not models.lora_paths:
        return checkpoint.load_weights(train.init_from, run.mesh, jnp.float32, weights="float")[1]
    shardings = _shardings(abstract_lora_params(run))
    adapters = jax.jit(
        lambda k: initialize(models.policy, k, include=is_lora_path), out_shardings=shardings
    )
    lora_params = adapters(key)
    return merge_trees(load_base_params(run), lora_params)


def load_base_params(run: TrainingRun) -> Params:
    """The base of a run's adapters, in `lora.base_dtype`."""
    dtype = jnp.float32 if run.config.lora.base_dtype == "float32" else jnp.bfloat16
    # Passed on without a name, so that buffers are freed one by one.
    return cast_to_param_dtypes(
        run.models.base,
        checkpoint.load_weights(run.config.train.init_from, run.mesh, dtype, weights="float")[1],
    )


def abstract_lora_params(run: TrainingRun) -> Params:
    """Shapes, dtypes and shardings of a run's adapters."""
    return lora_params_of(checkpoint.abstract_params(run.models.policy, run.mesh))


def lora_params_of(params: Params) -> Params:
    """The adapters' parameters alone."""
    flat = flatten_dict(params)
    return unflatten_dict({path: x for path, x in flat.items() if is_lora_path(path)})


def _shardings(abstract: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.sharding, abstract)


def initial_state(run: TrainingRun) -> TrainState:
    """The state of step 0."""
    params = initial_params(run)
    trainable, _ = partition(params, run.trainable_mask)
    shardings = optimizer_shardings(run.optimizer, run.mesh, trainable)
    replicated = NamedSharding(run.mesh, PartitionSpec())
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), replicated),
        params=params,
        opt_state=jax.jit(run.optimizer.init, out_shardings=shardings)(trainable),
        ema_params=jax.tree.map(jnp.copy, trainable) if run.config.train.ema_decay else None,
    )


def optimizer_shardings(
    optimizer: optax.GradientTransformation, mesh: Mesh, params: Params
) -> PyTree:
    """The optimizer state's shardings: moments like their parameters; counters, and the rows and
    columns of factored moments, replicated."""
    like = {("/".join(path), x.shape): x.sharding for path, x in flatten_dict(params).items()}
    replicated = NamedSharding(mesh, PartitionSpec())

    def sharding(path: Sequence[object], moment: jax.ShapeDtypeStruct) -> NamedSharding:
        names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
        # optax.partition puts its labels first; the parameter's own path is the rest.
        tails = (("/".join(names[i:]), moment.shape) for i in range(len(names)))
        return next((like[tail] for tail in tails if tail in like), replicated)

    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(optimizer.init, params))


def abstract_state(
    config: RunConfig, models: PolicyModels, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, to restore one or to compile a step."""
    params = checkpoint.abstract_params(models.policy, mesh)
    trainable, _ = partition(params, make_trainable_mask(models.policy, config.optimizer.freeze))
    opt_state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(optimizer.init, trainable),
        optimizer_shardings(optimizer, mesh, trainable),
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    return TrainState(step, params, opt_state, trainable if config.train.ema_decay else None)


def open_output_dir(run: TrainingRun) -> CheckpointManager:
    """Creates the output directory with its configuration, and opens its checkpoints.

    Raises InputError if not all hosts share it.
    """
    train = run.config.train
    check_shared_directory(train.output_dir)
    if is_main_process():
        if run.models.lora_paths:
            config = adapter_config(run.config, run.model_config, run.models)
            checkpoint.create_adapter(train.output_dir, config, run.tokenizer_dir)
        else:
            checkpoint.create(train.output_dir, run.model_config, run.tokenizer_dir)
    barrier("created")
    checkpoints = CheckpointManager(train.output_dir, train.max_to_keep, train.keep_period)
    if isinstance(train.resume, int):
        for step in checkpoints.all_steps():
            if step > train.resume:
                checkpoints.set_aside(step, "superseded")
    return checkpoints


def restore_or_initialize(
    run: TrainingRun, checkpoints: CheckpointManager
) -> tuple[TrainState, JsonDict | None]:
    """The latest saved state with the data iterator's, or the state of step 0 and None."""
    abstract = abstract_state(run.config, run.models, run.optimizer, run.mesh)
    trees = {"params": abstract.params, "opt_state": abstract.opt_state, "data_iterator": None}
    if run.models.lora_paths:
        trees["params"] = lora_params_of(abstract.params)
    if abstract.ema_params is not None:
        trees["trainable_params"] = abstract.ema_params
    found = checkpoints.restore_latest(**trees)
    if found is None:
        return initial_state(run), None
    step, saved = found
    params = saved["params"]
    if run.models.lora_paths:
        params = merge_trees(load_base_params(run), params)
    ema_params = None
    if abstract.ema_params is not None:
        # The saved params are the EMA.
        ema_params, _ = partition(params, run.trainable_mask)
        params = merge_trees(params, saved["trainable_params"])
    step_array = jax.device_put(np.int32(step), abstract.step.sharding)
    state = TrainState(step_array, params, saved["opt_state"], ema_params)
    return state, saved["data_iterator"]["data"]


def eval_params(state: TrainState) -> Params:
    """The parameters that are evaluated and saved: with the EMA, if there is one."""
    return state.params if state.ema_params is None else merge_trees(state.params, state.ema_params)


def save(
    run: TrainingRun,
    checkpoints: CheckpointManager,
    state: TrainState,
    batches: BatchIterator,
    step: int,
) -> None:
    """Saves a step in the background: parameters, optimizer state and the data iterator's."""
    params = eval_params(state)
    if run.models.lora_paths:
        params = lora_params_of(params)
    trees = {"opt_state": state.opt_state, "data_iterator": {"data": batches.get_state()}}
    if state.ema_params is not None:
        trees["trainable_params"], _ = partition(state.params, run.trainable_mask)
    checkpoints.save(step, params, **trees)
