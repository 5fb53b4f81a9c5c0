"""`qa-jax selftest`: numerical self-checks to run on new hardware.

A small random model computes the same values in two ways, on the available devices. Nothing is
downloaded; compiling takes a few minutes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qa_jax import checkpoint
from qa_jax.config import (
    HOP_LENGTH,
    MAX_FRAMES,
    MeshConfig,
    ModelConfig,
    SamplingConfig,
    num_audio_tokens,
    preset,
)
from qa_jax.data import TrainBatch
from qa_jax.generate import Engine
from qa_jax.model import AttentionMask, AudioInput, LogMel, Qwen2Audio, bind, initialize
from qa_jax.model.attention import dot_product_attention
from qa_jax.parallel import make_mesh, num_batch_shards
from qa_jax.train.objectives import next_token_loss
from qa_jax.typing import AnyArray, Params, PyTree

_FRAMES, _BUCKET = 150, 204


class Result(NamedTuple):
    """A check: what was compared, its error, and the largest allowed error."""

    name: str
    error: float
    limit: float
    seconds: float

    @property
    def passed(self) -> bool:
        return self.error <= self.limit


def selftest() -> Iterator[Result]:
    """Runs every check; a failure does not stop the others."""
    model = _SmallModel()
    checks: list[tuple[str, float, Callable[[], float]]] = [
        ("log-mel against float64", 2e-5, model.log_mel),
        ("a short bucket against the 30 s window", 1e-5, model.bucket),
        ("a row in a batch against a batch of that row", 1e-5, model.single_row),
        ("cached decoding against forward passes of whole rows", 0.0, model.cached),
        ("packed rows against unpacked rows", 1e-5, model.packed),
        ("scanned layers against unrolled layers", 1e-5, model.unrolled),
        ("rematerialised layers against stored activations", 1e-5, model.recomputed),
        ("two micro-batches against one batch", 1e-5, model.accumulated),
        ("bfloat16 against float32, loss", 2e-2, model.bfloat16),
    ]
    kernel = {"tpu": "splash", "gpu": "cudnn"}.get(jax.default_backend())
    if kernel is not None:
        checks.append(
            (
                f"{kernel} attention against chunked attention, bfloat16",
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
        # NaN is a failure.
        error = math.inf if math.isnan(error) else error
        yield Result(name, error, limit, time.perf_counter() - started)


def kernel_error(kernel: str) -> float:
    """Attention and its gradients by a fused kernel against chunked attention: segments, padding,
    grouped heads."""
    rng = np.random.default_rng(0)
    b, t, h = 2, 256, 64
    arrays = [jnp.asarray(rng.standard_normal((b, t, n, h)), jnp.bfloat16) for n in (4, 2, 2)]
    arrays[0] = arrays[0] * h**-0.5
    segments = np.ones((b, t), np.int32)
    segments[0, 100:] = 2
    segments[1, 200:] = 0
    is_token = jnp.asarray(segments > 0)[:, :, None, None]
    errors = []
    for causal in (False, True):
        mask = AttentionMask(jnp.asarray(segments), jnp.asarray(segments), causal)

        def run(implementation: str, mask: AttentionMask = mask) -> PyTree:
            def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
                out = dot_product_attention(q, k, v, mask, implementation=implementation)
                out = jnp.where(is_token, out, 0)
                return jnp.sum(jnp.sin(out.astype(jnp.float32))), out

            return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)

        errors.append(_tree_error(run(kernel), jax.tree.map(np.asarray, run("chunked"))))
    return max(errors)


def meshes(num_devices: int) -> list[tuple[int, int, int]]:
    """Shapes (data, fsdp, tensor) to check on so many devices."""
    if num_devices == 1:
        return []
    shapes = [(num_devices, 1, 1), (1, num_devices, 1)]
    if num_devices % 2 == 0:
        shapes.append((1, num_devices // 2, 2))
    if num_devices % 8 == 0:
        shapes.append((num_devices // 4, 2, 2))
    return shapes


class _SmallModel:
    """A random model and a batch of eight rows, each with a clip."""

    def __init__(self) -> None:
        demo = preset("demo")
        self.config = dataclasses.replace(
            demo, dtype="float32", unroll_layers=False, audio_token_id=6
        )
        self.num_rows = 8 * max(1, jax.device_count() // 8)
        rng = np.random.default_rng(0)
        waveform = 0.1 * rng.standard_normal((self.num_rows, _FRAMES * HOP_LENGTH))
        self.waveform = waveform.astype(np.float32)
        frames = rng.integers(_FRAMES // 2, _FRAMES, self.num_rows)
        frames[0] = _FRAMES
        self.num_frames = frames.astype(np.int32)
        width = num_audio_tokens(_FRAMES) + 40
        self.tokens = np.zeros((self.num_rows, width), np.int32)
        self.segment_ids = np.zeros((self.num_rows, width), np.int32)
        self.loss_weights = np.zeros((self.num_rows, width), np.float32)
        for i, count in enumerate(num_audio_tokens(self.num_frames)):
            end = width - int(rng.integers(0, 20))
            self.tokens[i, :end] = rng.integers(10, self.config.text.vocab_size, end)
            self.tokens[i, 3 : 3 + count] = self.config.audio_token_id
            self.segment_ids[i, :end] = 1
            self.loss_weights[i, 3 + count : end] = 1
        for i in range(self.num_rows):
            self.waveform[i, self.num_frames[i] * HOP_LENGTH :] = 0
        with jax.default_device(jax.local_devices()[0]):
            self.params = jax.tree.map(
                np.asarray, initialize(Qwen2Audio(self.config), jax.random.key(0))
            )

    def batch(self, rows: slice = slice(None)) -> TrainBatch:
        padded = np.pad(self.waveform, ((0, 0), (0, (_BUCKET - _FRAMES) * HOP_LENGTH)))
        return TrainBatch(
            self.tokens[rows],
            self.segment_ids[rows],
            self.loss_weights[rows],
            padded[rows],
            self.num_frames[rows],
        )

    def loss(self, config: ModelConfig, batch: TrainBatch, num_shards: int = 1) -> Callable:
        bound = bind(Qwen2Audio(config))
        batch = jax.tree.map(jnp.asarray, batch)

        def mean(params: Params) -> jax.Array:
            out = next_token_loss(bound(params), batch, num_shards)
            return out.loss / out.weight

        return jax.value_and_grad(mean)

    @functools.cached_property
    def plain(self) -> PyTree:
        """Loss and gradients on one device, with which the variants are compared."""
        value = jax.jit(self.loss(self.config, self.batch()))(self.params)
        return jax.tree.map(np.asarray, value)

    def against(self, config: ModelConfig, batch: TrainBatch) -> float:
        """Error of a variant's loss and gradients."""
        other = jax.jit(self.loss(config, batch))(self.params)
        return _tree_error(other, self.plain)

    def log_mel(self) -> float:
        import librosa

        waveform = self.waveform[0]
        log_mel = np.asarray(jax.jit(LogMel(80))(waveform[None]))[0]
        padded = np.pad(waveform, (200, 0), mode="reflect")
        padding = MAX_FRAMES * HOP_LENGTH - waveform.size + 200
        padded = np.pad(padded.astype(np.float64), (0, padding))
        window = np.hanning(401)[:-1]
        starts = np.arange(MAX_FRAMES) * HOP_LENGTH
        spectrum = np.fft.rfft(padded[starts[:, None] + np.arange(400)] * window)
        filters = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=80, dtype=np.float32)
        mel = np.log10(np.maximum(np.abs(spectrum) ** 2 @ filters.T.astype(np.float64), 1e-10))
        expected = (np.maximum(mel, mel.max() - 8) + 4) / 4
        return float(np.abs(log_mel - expected[: len(log_mel)]).max())

    def bucket(self) -> float:
        bound = bind(Qwen2Audio(self.config))

        def encode(params: Params, waveform: jax.Array, num_frames: jax.Array) -> jax.Array:
            return bound(params).encode_audio(AudioInput(waveform, num_frames))

        batch = self.batch(slice(0, 1))
        short = jax.jit(encode)(self.params, batch.waveform, batch.num_frames)
        window = np.pad(self.waveform[:1], ((0, 0), (0, (MAX_FRAMES - _FRAMES) * HOP_LENGTH)))
        whole = jax.jit(encode)(self.params, window, batch.num_frames)
        n = int(num_audio_tokens(self.num_frames[0]))
        return _error(short[:, :n], whole[:, :n])

    def logits(self, batch: TrainBatch) -> np.ndarray:
        bound = bind(Qwen2Audio(self.config))

        def run(params: Params, b: TrainBatch) -> jax.Array:
            model = bound(params)
            assert b.waveform is not None and b.num_frames is not None
            audio = AudioInput(b.waveform, b.num_frames)
            return model.logits(model(b.tokens, b.segment_ids, audio)[0])

        return np.asarray(jax.jit(run)(self.params, batch))

    def single_row(self) -> float:
        batched = self.logits(self.batch())
        errors = []
        for i in range(2):
            n = int(self.segment_ids[i].sum())
            single = self.logits(self.batch(slice(i, i + 1)))
            errors.append(_error(single[0, :n], batched[i, :n]))
        return max(errors)

    def cached(self) -> float:
        """Greedy decoding: the fraction of tokens that differ."""
        batch, config = self.batch(slice(0, 1)), self.config
        n = int(self.segment_ids[0].sum())
        row = self.tokens[0, :n].tolist()
        inputs = {
            "input_ids": np.array([row]),
            "attention_mask": np.ones((1, n), np.int32),
            "audio": batch.waveform,
            "audio_lengths": self.num_frames[:1] * HOP_LENGTH,
        }
        engine = Engine(config, jax.tree.map(jnp.asarray, self.params))
        answer = engine.generate(inputs, SamplingConfig(max_new_tokens=6))[0]
        expected: list[int] = []
        for _ in answer:
            tokens = np.array([row + expected])
            whole = batch._replace(
                tokens=tokens,
                segment_ids=np.ones_like(tokens),
                loss_weights=np.zeros(tokens.shape, np.float32),
            )
            expected.append(int(self.logits(whole)[0, -1].argmax()))
        return float(np.mean(np.array(answer) != np.array(expected)))

    def packed(self) -> float:
        """Two records per row: half the rows, twice as long."""
        half, width = self.num_rows // 2, self.tokens.shape[1]

        def pack(x: np.ndarray) -> np.ndarray:
            return x.reshape(half, 2 * width)

        segments = self.segment_ids.copy()
        segments[1::2] *= 2
        batch = self.batch()._replace(
            tokens=pack(self.tokens),
            segment_ids=pack(segments),
            loss_weights=pack(self.loss_weights),
        )
        return self.against(self.config, batch)

    def unrolled(self) -> float:
        return self.against(dataclasses.replace(self.config, unroll_layers=True), self.batch())

    def recomputed(self) -> float:
        return self.against(dataclasses.replace(self.config, remat="full"), self.batch())

    def accumulated(self) -> float:
        bound, half = bind(Qwen2Audio(self.config)), self.num_rows // 2

        def total(params: Params, batch: TrainBatch) -> tuple[jax.Array, jax.Array]:
            out = next_token_loss(bound(params), batch)
            return out.loss, out.weight

        gradient = jax.jit(jax.value_and_grad(total, has_aux=True))
        parts = [gradient(self.params, self.batch(s)) for s in (slice(half), slice(half, None))]
        weight = sum(w for (_, w), _ in parts)
        summed = jax.tree.map(lambda a, b: (a + b) / weight, parts[0][1], parts[1][1])
        return _tree_error(summed, self.plain[1])

    def bfloat16(self) -> float:
        half = dataclasses.replace(self.config, dtype="bfloat16")
        loss, _ = jax.jit(self.loss(half, self.batch()))(self.params)
        return _error(loss, self.plain[0])

    def on_mesh(self, sizes: tuple[int, int, int]) -> float:
        mesh = make_mesh(MeshConfig(*sizes))
        with jax.set_mesh(mesh):
            abstract = checkpoint.abstract_params(Qwen2Audio(self.config), mesh)
            params = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), self.params, abstract)
            step = self.loss(self.config, self.batch(), num_batch_shards(mesh))
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


def _error(found: AnyArray, expected: AnyArray) -> float:
    """Largest difference over largest magnitude."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def _tree_error(found: PyTree, expected: PyTree) -> float:
    """The largest `_error` of any leaf; nearly zero leaves are compared with the largest leaf."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    largest = max(float(np.abs(b).max()) for _, b in pairs)
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        / max(float(np.abs(b).max()), 1e-3 * largest)
        for a, b in pairs
    )
