"""Prints the planned memory of a CPU step, and the peak memory of two real steps.

A process of its own: its peak is its own, and JAX has one device.
"""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np

from qa_jax.config import RunConfig, num_audio_tokens, preset
from qa_jax.data import TrainBatch
from qa_jax.model import initialize
from qa_jax.parallel import make_mesh
from qa_jax.parallel.hardware import Chip
from qa_jax.plan import Target, make_plan
from qa_jax.plan.plan import lower_step
from qa_jax.train.optimizer import make_optimizer, make_trainable_mask
from qa_jax.train.run import make_models
from qa_jax.train.step import TrainState
from qa_jax.trees import partition

FRAMES, ROWS, TOKENS = 504, 4, 320


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


def main() -> None:
    model = dataclasses.replace(preset("bench"), remat="full")
    config = RunConfig(model=model)
    data = dataclasses.replace(config.data, buckets={FRAMES: ROWS}, max_tokens=TOKENS)
    config = dataclasses.replace(config, data=data)
    devices = jax.devices()
    plan = make_plan(config, Target("cpu", tuple(devices), 1, Chip(1e12, 2**40, 1e11, 1e10)))
    mesh = make_mesh(config.mesh, devices)
    compiled = lower_step(config, mesh, plan.shapes).compile()
    before = resident("VmRSS")

    models = make_models(model, config.lora)
    optimizer = make_optimizer(config.optimizer, config.train.steps, models.policy)
    places = compiled.input_shardings[0]
    fresh = jax.jit(lambda key: initialize(models.policy, key), out_shardings=places[0].params)
    params = fresh(jax.random.key(0))
    trainable, _ = partition(params, make_trainable_mask(models.policy, config.optimizer.freeze))
    moments = jax.jit(optimizer.init, out_shardings=places[0].opt_state)(trainable)
    step = jax.device_put(np.int32(0), places[0].step)
    state = TrainState(step, params, moments)
    del trainable, params, moments

    tokens = np.full((1, ROWS, TOKENS), 5, np.int32)
    tokens[:, :, 2 : 2 + num_audio_tokens(FRAMES - 4)] = model.audio_token_id
    signal = np.random.default_rng(0).standard_normal((1, ROWS, FRAMES * 160))
    batch = TrainBatch(
        tokens,
        np.ones_like(tokens),
        np.ones(tokens.shape, np.float32),
        signal.astype(np.float32),
        np.full((1, ROWS), FRAMES - 4, np.int32),
    )
    batch = jax.device_put(batch, places[1])
    del signal, tokens
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts anew
    for _ in range(2):
        state, metrics = compiled(state, batch, None)
        jax.block_until_ready(state)
    assert np.isfinite(float(metrics["loss"]))
    print(json.dumps([sum(plan.bytes_per_chip.values()), resident("VmHWM") - before]))


if __name__ == "__main__":
    main()
