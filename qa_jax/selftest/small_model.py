"""A small random model that computes the same values in two ways."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import tempfile
import uuid
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

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
from qa_jax.model import AudioInput, LogMel, Qwen2Audio, bind, initialize
from qa_jax.parallel import (
    barrier,
    check_shared_directory,
    gather_texts,
    is_main_process,
    make_mesh,
    num_batch_shards,
)
from qa_jax.paths import as_path, remove_tree
from qa_jax.train.objectives import next_token_loss
from qa_jax.typing import AnyArray, Float, Params, PyTree

_FRAMES, _BUCKET = 150, 204


class Worst(NamedTuple):
    """The largest error of this process, and the device that has it."""

    error: float
    device: str = ""


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


class SmallModel:
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

        def mean(params: Params) -> jax.Array:
            # Constants of the program, so that it is the same in all processes.
            out = next_token_loss(bound(params), jax.tree.map(jnp.asarray, batch), num_shards)
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
        return tree_error(other, self.plain)

    def devices(self) -> Worst:
        """Loss and gradients on every device: the difference in bits from the first process's first
        device, which names a faulty chip."""
        step = jax.jit(self.loss(self.config, self.batch()))
        digests = {}
        for device in jax.local_devices():
            try:
                value = jax.device_get(step(jax.device_put(self.params, device)))
            except Exception as failed:  # every process must come to the comparison below
                digests[str(device)] = str(failed)
                continue
            digest = hashlib.sha256(b"".join(x.tobytes() for x in jax.tree.leaves(value)))
            digests[str(device)] = digest.hexdigest()
        everywhere = [json.loads(text) for text in gather_texts(json.dumps(digests))]
        counts = collections.Counter(d for found in everywhere for d in found.values())
        usual = counts.most_common(1)[0][0]
        wrong = [device for device, digest in digests.items() if digest != usual]
        return Worst(float(len(wrong)), ", ".join(wrong))

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

    def logits(self, batch: TrainBatch) -> Float[np.ndarray, "B T V"]:
        bound = bind(Qwen2Audio(self.config))

        def run(params: Params, b: TrainBatch) -> jax.Array:
            model = bound(params)
            assert b.waveform is not None and b.num_frames is not None
            audio = AudioInput(b.waveform, b.num_frames)
            return model.logits(model(b.tokens, b.segment_ids, audio))

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
        return tree_error(summed, self.plain[1])

    def bfloat16(self) -> float:
        half = dataclasses.replace(self.config, dtype="bfloat16")
        loss, _ = jax.jit(self.loss(half, self.batch()))(self.params)
        return _error(loss, self.plain[0])

    def on_mesh(self, sizes: tuple[int, int, int]) -> Worst:
        mesh, plain = make_mesh(MeshConfig(*sizes)), self.plain  # the latter without a mesh
        with jax.set_mesh(mesh):
            step = self.loss(self.config, self.batch(), num_batch_shards(mesh))
            value, gradients = jax.jit(step)(self.sharded(mesh))
            return worst_shard((value, gradients), plain)

    def sharded(self, mesh: Mesh) -> Params:
        """The parameters on a mesh, which may span processes."""
        abstract = checkpoint.abstract_params(Qwen2Audio(self.config), mesh)
        return jax.tree.map(
            lambda x, a: jax.make_array_from_callback(x.shape, a.sharding, lambda i: x[i]),
            self.params,
            abstract,
        )

    def restored(self, directory: str) -> Worst:
        shapes = meshes(jax.device_count()) or [(1, 1, 1)]
        with contextlib.ExitStack() as stack:
            if not directory:
                directory = stack.enter_context(tempfile.TemporaryDirectory())
            check_shared_directory(directory)
            name = gather_texts(uuid.uuid4().hex)[0]
            path = as_path(directory) / f"selftest-{name}"
            if is_main_process():
                checkpoint.create(path, self.config, None)
            barrier("created")
            checkpoint.save_params(path, self.sharded(make_mesh(MeshConfig(*shapes[-1]))))
            worst = Worst(0.0)
            for sizes in shapes:
                found = checkpoint.load_params(path, self.config, make_mesh(MeshConfig(*sizes)))
                worst = max(worst, worst_shard(found, self.params))
            barrier("restored")
            if is_main_process():
                remove_tree(path)
        return worst


def worst_shard(found: PyTree, expected: PyTree) -> Worst:
    """The largest error of any shard on this process's devices, as `tree_error` counts it."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    largest = max(float(np.abs(b).max()) for _, b in pairs)
    worst = Worst(0.0)
    for a, b in pairs:
        scale = max(float(np.abs(b).max()), 1e-3 * largest)
        for shard in a.addressable_shards:
            error = float(np.abs(np.asarray(shard.data) - np.asarray(b)[shard.index]).max()) / scale
            error = math.inf if math.isnan(error) else error
            worst = max(worst, Worst(error, str(shard.device)))
    return worst


def _error(found: AnyArray, expected: AnyArray) -> float:
    """Largest difference over largest magnitude."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def tree_error(found: PyTree, expected: PyTree) -> float:
    """The largest `_error` of any leaf; nearly zero leaves are compared with the largest leaf."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
    largest = max(float(np.abs(b).max()) for _, b in pairs)
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        / max(float(np.abs(b).max()), 1e-3 * largest)
        for a, b in pairs
    )
