"""What rounding the linear layers changes, layer by layer and in the logits.

    python benchmarks/quantization.py [HF_DIRECTORY]

The checkpoint in that directory, or a random model of the released size, drawn from the
initializers. Layers are made or read one at a time: 17 GB and five minutes for the released size.
A clip of noise and random text pass through the float32 layers and through rounded ones: bfloat16,
int8 as `--weights int8` rounds them, and int4 in groups of 128 inputs, which exists here alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import zlib
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from common import cpu_name, replace_section

from qa_jax.config import ModelConfig, preset
from qa_jax.hf import SafetensorsDir, load_params, open_model, tensor_map
from qa_jax.hf.load import read_part
from qa_jax.model import (
    Qwen2Audio,
    bind,
    cast_to_param_dtypes,
    declare_int8,
    initialize,
    linear_layers,
    param_specs,
)
from qa_jax.model.attention import AttentionMask
from qa_jax.model.decoder import DecoderLayer
from qa_jax.model.encoder import EncoderLayer, gelu
from qa_jax.model.module import Module
from qa_jax.trees import flatten_dict, unflatten_dict
from qa_jax.typing import ParamPath, Params

SAMPLES, TEXT_TOKENS, INT4_GROUP = 64_000, 64, 128


class Weights:
    """float32 parameters of a checkpoint, or random ones, made when they are asked for."""

    def __init__(self, config: ModelConfig, source: SafetensorsDir | None) -> None:
        self.config, self.source = config, source

    def layer(self, module: Module, stack: ParamPath, index: int) -> Params:
        """One layer of a stack."""
        if self.source is None:
            return self.random(module, f"{stack} {index}")
        flat = {}
        for t in tensor_map(self.config).values():
            if t.path[: len(stack)] == stack and t.layer == index:
                part = read_part(self.source, t, tuple(slice(0, n) for n in t.shape))
                flat[t.path[len(stack) :]] = jnp.asarray(part, jnp.float32)
        return unflatten_dict(flat)

    def rest(self) -> Qwen2Audio:
        """Everything but the layers, of which it has the first two, unused."""
        audio = dataclasses.replace(self.config.audio, encoder_layers=1)
        text = dataclasses.replace(self.config.text, num_hidden_layers=1)
        config = dataclasses.replace(self.config, audio=audio, text=text, dtype="float32")
        model = Qwen2Audio(config)
        if self.source is None:
            return bind(model)(self.random(model, "rest"))
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = unflatten_dict(dict.fromkeys(param_specs(model), place))
        return bind(model)(load_params(self.source, config, places, jnp.float32))

    @staticmethod
    def random(module: Module, name: str) -> Params:
        key = jax.random.key(zlib.crc32(name.encode()))
        return jax.jit(lambda key: initialize(module, key))(key)


def round_int4(module: Module, params: Params) -> Params:
    """Kernels as -7 to 7 times a scale for each output and group of inputs."""
    flat = flatten_dict(params)
    for path, layer in linear_layers(module).items():
        kernel = flat[(*path, "kernel")]
        outputs = kernel.shape[layer.in_dims :]
        group = math.gcd(INT4_GROUP, kernel.size // math.prod(outputs))
        groups = kernel.reshape(-1, group, *outputs)
        scale = jnp.maximum(jnp.abs(groups).max(axis=1, keepdims=True), 1e-30) / 7
        flat[(*path, "kernel")] = (jnp.round(groups / scale) * scale).reshape(kernel.shape)
    return unflatten_dict(flat)


def round_bfloat16(params: Params) -> Params:
    """Parameters as bfloat16 holds them."""
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), params)


def difference(x: jax.Array, reference: jax.Array) -> float:
    """The norm of the difference from the reference, over the reference's."""
    return float(jnp.linalg.norm(x - reference) / jnp.linalg.norm(reference))


class Comparison:
    """Hidden states of the float32 model and of its rounded forms, and the table."""

    def __init__(self, x: jax.Array) -> None:
        self.exact, self.rounded = x, dict.fromkeys(("bfloat16", "int8", "int4"), x)
        self.rows: list[str] = []

    def apply(self, part: Callable[[jax.Array], jax.Array]) -> None:
        """A part whose parameters are not rounded."""
        part = jax.jit(part)
        self.exact = part(self.exact)
        self.rounded = {form: part(x) for form, x in self.rounded.items()}

    def run_layers(
        self,
        make: Callable[[], Module],
        count: int,
        params_of: Callable[[Module, int], Params],
        call: Callable[[Module, jax.Array], jax.Array],
    ) -> None:
        """A stack of layers; each gives a row, every eighth and the first in the table."""
        plain, narrow = make(), make()
        declare_int8(narrow)
        run = jax.jit(lambda params, x: call(bind(plain)(params), x))
        run_int8 = jax.jit(lambda params, x: call(bind(narrow)(params), x))
        forms = {
            "bfloat16": (run, jax.jit(round_bfloat16)),
            "int8": (run_int8, lambda params: cast_to_param_dtypes(narrow, params)),
            "int4": (run, jax.jit(lambda params: round_int4(plain, params))),
        }
        for i in range(count):
            params, x = params_of(plain, i), self.exact
            self.exact, alone = run(params, x), {}
            for form, (step, rounded) in forms.items():
                values = rounded(params)
                self.rounded[form], alone[form] = step(values, self.rounded[form]), step(values, x)
            name = "encoder" if isinstance(plain, EncoderLayer) else "decoder"
            self.add(f"{name}, layer {i + 1}", alone, shown=i == 0 or (i + 1) % 8 == 0)

    def add(self, name: str, alone: dict[str, jax.Array], shown: bool = True) -> None:
        """A row; `alone` has the results of rounded layers for an exact input."""
        differences = [
            f"{difference(x, self.exact):.2%}" if x is not None else ""
            for form, total in self.rounded.items()
            for x in (alone.get(form), total)
        ]
        print(row := f"| {name} | {' | '.join(differences)} |", flush=True)
        if shown:
            self.rows.append(row)


def compare(weights: Weights) -> Comparison:
    """Passes a clip of noise, then its embeddings and random text; ends with the logits."""
    config, model, rng = weights.config, weights.rest(), np.random.default_rng(0)
    encoder, decoder = model.encoder, model.decoder
    log_mel = model.log_mel(jnp.asarray(rng.normal(0, 0.1, (1, SAMPLES)), jnp.float32))
    x = gelu(encoder.conv2(gelu(encoder.conv1(log_mel))))
    result = Comparison(x + encoder.embed_positions[: x.shape[1]])
    whole = AttentionMask(*[jnp.ones(x.shape[:2], jnp.int32)] * 2)
    result.run_layers(
        lambda: EncoderLayer(config.audio),
        config.audio.encoder_layers,
        lambda module, i: weights.layer(module, ("encoder", "layers"), i),
        lambda layer, x: layer(x, whole),
    )
    text = decoder.embed(rng.integers(0, config.text.vocab_size, (1, TEXT_TOKENS)), jnp.float32)
    pool = lambda x: encoder.layer_norm(x.reshape(1, -1, 2, x.shape[2]).mean(axis=2))  # noqa: E731
    result.apply(lambda x: jnp.concatenate([model.projector(pool(x)), text], axis=1))
    positions = jnp.arange(result.exact.shape[1])[None]
    causal = AttentionMask(*[jnp.ones_like(positions)] * 2, is_causal=True)
    result.run_layers(
        lambda: DecoderLayer(config.text),
        config.text.num_hidden_layers,
        lambda module, i: weights.layer(module, ("decoder", "layers"), i),
        lambda layer, x: layer(x, positions, causal)[0],
    )
    result.apply(lambda x: decoder.logits(decoder.norm(x[:, -TEXT_TOKENS:])))
    result.add("logits", {})
    return result


def divergence(logits: jax.Array, exact: jax.Array) -> str:
    """What the model's own samples' perplexity grows by, and how often the first choice is kept."""
    log_p, log_q = jax.nn.log_softmax(exact), jax.nn.log_softmax(logits)
    kl = float(jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)))
    same = float(jnp.mean(jnp.argmax(log_p, axis=-1) == jnp.argmax(log_q, axis=-1)))
    return f"perplexity {np.expm1(kl):+.3%}, the same most probable token {same:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", nargs="?", help="a Hugging Face checkpoint")
    directory = parser.parse_args().directory
    config, source = open_model(directory) if directory else (preset("qwen2_audio_7b"), None)
    result = compare(Weights(config, source))
    summary = [
        f"- {form}: {divergence(logits, result.exact)}" for form, logits in result.rounded.items()
    ]
    print(*summary, sep="\n")
    if source is None:
        forms = (f"{form}, {part}" for form in result.rounded for part in ("this layer", "all"))
        head = [f"| after | {' | '.join(forms)} |", "|" + "---|" * 7]
        lines = [f"{cpu_name()}.", "", *head, *result.rows, "", *summary]
        replace_section("quantization", lines)


if __name__ == "__main__":
    main()
