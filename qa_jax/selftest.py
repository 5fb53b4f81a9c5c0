"""`qa-jax selftest`: on new hardware, do the equivalences hold that everything here relies on?

A small random model computes the same thing in two ways, on the devices at hand. Nothing is
downloaded; a few minutes go into compiling.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax import checkpoint
from qa_jax.config import HOP_LENGTH, MAX_FRAMES, MeshConfig, ModelConfig, preset, token_count
from qa_jax.data import TrainBatch
from qa_jax.generate import Engine, Sampling
from qa_jax.model import Audio, LogMel, Params, Qwen2Audio, Visible, bind, initialize
from qa_jax.model.attention import attend
from qa_jax.parallel import batch_shards, make_mesh
from qa_jax.train.objectives import next_token_loss

_FRAMES, _BUCKET = 150, 204


class Result(NamedTuple):
    """One check: what was compared, how far it was off, and how far it may be."""

    name: str
    error: float
    limit: float
    seconds: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


def selftest() -> Iterator[Result]:
    """Runs every check, each on its own; the first failure stops none of the others."""
    model = _Small()
    checks: list[tuple[str, float, Callable[[], float]]] = [
        ("log-mel against float64", 2e-5, model.log_mel),
        ("a short bucket against the 30 s window", 1e-5, model.bucket),
        ("a row in a batch against the row alone", 1e-5, model.alone),
        ("cached decoding against whole forwards", 0.0, model.cached),
        ("packed rows against rows apart", 1e-5, model.packed),
        ("layers scanned against one by one", 1e-5, model.unrolled),
        ("layers recomputed against layers stored", 1e-5, model.recomputed),
        ("two micro-batches against one batch", 1e-5, model.accumulated),
        ("bfloat16 against float32, loss", 2e-2, model.bfloat16),
    ]
    kernel = {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend())
    if kernel is not None:
        checks.append(
            (
                f"attention by {kernel} against pieces, bfloat16",
                2e-2,
                lambda: kernel_error(kernel),
            )
        )
    for sizes in meshes(jax.device_count()):
        checks.append(
            (
                f"mesh {'x'.join(map(str, sizes))} against one device, loss and gradients",
                1e-4,
                lambda sizes=sizes: model.on_mesh(sizes),  # type: ignore[misc]
            )
        )
    checks.append(("a checkpoint restored on other meshes", 0.0, model.restored))
    for name, limit, check in checks:
        started = time.perf_counter()
        error = check()
        # No number is never a pass.
        error = math.inf if math.isnan(error) else error
        yield Result(name, error, limit, time.perf_counter() - started)


def kernel_error(kernel: str) -> float:
    """Attention and its gradients by a kernel against our own pieces: segments, padding, grouped
    heads."""
    rng = np.random.default_rng(0)
    b, t, h = 2, 256, 64
    arrays = [jnp.asarray(rng.standard_normal((b, t, n, h)), jnp.bfloat16) for n in (4, 2, 2)]
    arrays[0] = arrays[0] * h**-0.5
    segments = np.ones((b, t), np.int32)
    segments[0, 100:] = 2
    segments[1, 200:] = 0
    used = jnp.asarray(segments > 0)[:, :, None, None]
    errors = []
    for causal in (False, True):
        visible = Visible(jnp.asarray(segments), jnp.asarray(segments), causal)

        def run(by: str, visible: Visible = visible) -> Any:
            def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
                out = jnp.where(used, attend(q, k, v, visible, by=by), 0)
                return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

            return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)

        errors.append(_tree_error(run(kernel), jax.tree.map(np.asarray, run("pieces"))))
    return max(errors)


def meshes(devices: int) -> list[tuple[int, int, int]]:
    """Shapes (data, fsdp, tensor) worth trying on so many devices."""
    if devices == 1:
        return []
    shapes = [(devices, 1, 1), (1, devices, 1)]
    if devices % 2 == 0:
        shapes.append((1, devices // 2, 2))
    if devices % 8 == 0:
        shapes.append((devices // 4, 2, 2))
    return shapes


class _Small:
    """A random model and a batch of eight rows, each with a clip."""

    def __init__(self) -> None:
        demo = preset("demo")
        self.config = dataclasses.replace(demo, dtype="float32", unroll=False, audio_token_id=6)
        self.rows = 8 * max(1, jax.device_count() // 8)
        rng = np.random.default_rng(0)
        self.signal = 0.1 * rng.standard_normal((self.rows, _FRAMES * HOP_LENGTH)).astype(
            np.float32
        )
        frames = rng.integers(_FRAMES // 2, _FRAMES, self.rows)
        frames[0] = _FRAMES
        self.frames = frames.astype(np.int32)
        width = token_count(_FRAMES) + 40
        self.tokens = np.zeros((self.rows, width), np.int32)
        self.segments = np.zeros((self.rows, width), np.int32)
        self.weights = np.zeros((self.rows, width), np.float32)
        for i, count in enumerate(token_count(self.frames)):
            end = width - int(rng.integers(0, 20))
            self.tokens[i, :end] = rng.integers(10, self.config.text.vocab_size, end)
            self.tokens[i, 3 : 3 + count] = self.config.audio_token_id
            self.segments[i, :end] = 1
            self.weights[i, 3 + count : end] = 1
        for i in range(self.rows):
            self.signal[i, self.frames[i] * HOP_LENGTH :] = 0
        with jax.default_device(jax.local_devices()[0]):
            self.params = jax.tree.map(
                np.asarray, initialize(Qwen2Audio(self.config), jax.random.key(0))
            )

    def batch(self, rows: slice = slice(None)) -> TrainBatch:
        padded = np.pad(self.signal, ((0, 0), (0, (_BUCKET - _FRAMES) * HOP_LENGTH)))
        return TrainBatch(
            self.tokens[rows],
            self.segments[rows],
            self.weights[rows],
            padded[rows],
            self.frames[rows],
        )

    def loss(self, config: ModelConfig, batch: TrainBatch, groups: int = 1) -> Callable[..., Any]:
        bound = bind(Qwen2Audio(config))

        def mean(params: Params) -> jax.Array:
            sums = next_token_loss(bound(params), batch, groups)
            return sums.loss / sums.weight

        return jax.value_and_grad(mean)

    @functools.cached_property
    def plain(self) -> Any:
        """Loss and gradients on one device: what the variants are held against."""
        value = jax.jit(self.loss(self.config, self.batch()))(self.params)
        return jax.tree.map(np.asarray, value)

    def against(self, config: ModelConfig, batch: TrainBatch) -> float:
        """Loss and gradients of a variant against the plain ones."""
        other = jax.jit(self.loss(config, batch))(self.params)
        return _tree_error(other, self.plain)

    def log_mel(self) -> float:
        import librosa

        signal = self.signal[0]
        ours = np.asarray(jax.jit(LogMel(80))(signal[None]))[0]
        padded = np.pad(signal, (200, 0), mode="reflect")
        padded = np.pad(padded.astype(np.float64), (0, MAX_FRAMES * HOP_LENGTH - signal.size + 200))
        window = np.hanning(401)[:-1]
        starts = np.arange(MAX_FRAMES) * HOP_LENGTH
        spectrum = np.fft.rfft(padded[starts[:, None] + np.arange(400)] * window)
        filters = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=80, dtype=np.float32)
        mel = np.log10(np.maximum(np.abs(spectrum) ** 2 @ filters.T.astype(np.float64), 1e-10))
        expected = (np.maximum(mel, mel.max() - 8) + 4) / 4
        return float(np.abs(ours - expected[: len(ours)]).max())

    def bucket(self) -> float:
        bound = bind(Qwen2Audio(self.config))

        def encode(params: Params, signal: Any, frames: Any) -> jax.Array:
            return bound(params).encode_audio(Audio(signal, frames))

        batch = self.batch(slice(0, 1))
        short = jax.jit(encode)(self.params, batch.signal, batch.frames)
        window = np.pad(self.signal[:1], ((0, 0), (0, (MAX_FRAMES - _FRAMES) * HOP_LENGTH)))
        whole = jax.jit(encode)(self.params, window, batch.frames)
        n = int(token_count(self.frames[0]))
        return _error(short[:, :n], whole[:, :n])

    def logits(self, batch: TrainBatch) -> np.ndarray:
        bound = bind(Qwen2Audio(self.config))

        def run(params: Params, b: TrainBatch) -> jax.Array:
            model = bound(params)
            return model.logits(model(b.tokens, b.segments, Audio(b.signal, b.frames))[0])

        return np.asarray(jax.jit(run)(self.params, batch))

    def alone(self) -> float:
        together = self.logits(self.batch())
        errors = []
        for i in range(2):
            n = int(self.segments[i].sum())
            errors.append(_error(self.logits(self.batch(slice(i, i + 1)))[0, :n], together[i, :n]))
        return max(errors)

    def cached(self) -> float:
        """Greedy answers, token by token: the share that differs."""
        batch, config = self.batch(slice(0, 1)), self.config
        n = int(self.segments[0].sum())
        row = self.tokens[0, :n].tolist()
        inputs = {
            "input_ids": np.array([row]),
            "attention_mask": np.ones((1, n), np.int32),
            "audio": batch.signal,
            "audio_lengths": batch.frames * HOP_LENGTH,
        }
        engine = Engine(config, jax.tree.map(jnp.asarray, self.params))
        answer = engine.generate(inputs, Sampling(max_new_tokens=6))[0]
        expected: list[int] = []
        for _ in answer:
            tokens = np.array([row + expected])
            whole = batch._replace(tokens=tokens, segments=np.ones_like(tokens))
            expected.append(int(self.logits(whole)[0, -1].argmax()))
        return float(np.mean(np.array(answer) != np.array(expected)))

    def packed(self) -> float:
        """Two records a row: half the rows, twice as long."""
        half, width = self.rows // 2, self.tokens.shape[1]

        def side_by_side(x: np.ndarray) -> np.ndarray:
            return x.reshape(half, 2 * width)

        segments = self.segments.copy()
        segments[1::2] *= 2
        batch = self.batch()._replace(
            tokens=side_by_side(self.tokens),
            segments=side_by_side(segments),
            weights=side_by_side(self.weights),
        )
        return self.against(self.config, batch)

    def unrolled(self) -> float:
        return self.against(dataclasses.replace(self.config, unroll=True), self.batch())

    def recomputed(self) -> float:
        return self.against(dataclasses.replace(self.config, remat="full"), self.batch())

    def accumulated(self) -> float:
        bound, half = bind(Qwen2Audio(self.config)), self.rows // 2

        def total(params: Params, batch: TrainBatch) -> Any:
            sums = next_token_loss(bound(params), batch)
            return sums.loss, sums.weight

        gradient = jax.jit(jax.value_and_grad(total, has_aux=True))
        parts = [gradient(self.params, self.batch(s)) for s in (slice(half), slice(half, None))]
        weight = sum(w for (_, w), _ in parts)
        summed = jax.tree.map(lambda a, b: (a + b) / weight, parts[0][1], parts[1][1])
        return _tree_error(summed, self.plain[1])

    def bfloat16(self) -> float:
        half = dataclasses.replace(self.config, dtype="bfloat16")
        ours, _ = jax.jit(self.loss(half, self.batch()))(self.params)
        return _error(ours, self.plain[0])

    def on_mesh(self, sizes: tuple[int, int, int]) -> float:
        mesh = make_mesh(MeshConfig(*sizes))
        with jax.set_mesh(mesh):
            abstract = checkpoint.abstract_params(Qwen2Audio(self.config), mesh)
            params = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), self.params, abstract)
            step = self.loss(self.config, self.batch(), batch_shards(mesh))
            value, gradients = jax.jit(step)(params)
            return _tree_error((value, gradients), self.plain)

    def restored(self) -> float:
        shapes = meshes(jax.device_count()) or [(1, 1, 1)]
        with tempfile.TemporaryDirectory() as directory:
            abstract = checkpoint.abstract_params(
                Qwen2Audio(self.config), make_mesh(MeshConfig(*shapes[-1]))
            )
            params = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), self.params, abstract)
            checkpoint.create(directory, self.config, None)
            checkpoint.save_params(directory, params)
            errors = []
            for sizes in shapes:
                mesh = make_mesh(MeshConfig(*sizes))
                found = checkpoint.load_params(directory, self.config, mesh)
                errors.append(_tree_error(found, self.params))
            return max(errors)


def _error(ours: Any, expected: Any) -> float:
    """Largest difference over largest magnitude."""
    a, b = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def _tree_error(ours: Any, expected: Any) -> float:
    """The worst `_error` of any leaf; leaves that are all but zero count against the largest."""
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True))
    largest = max(float(np.abs(b).max()) for _, b in pairs)
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        / max(float(np.abs(b).max()), 1e-3 * largest)
        for a, b in pairs
    )
