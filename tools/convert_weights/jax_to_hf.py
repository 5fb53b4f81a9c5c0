"""A qa_jax checkpoint -> Hugging Face's safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from convert_weights.job import (
    Checksum,
    ConversionJob,
    compare,
    read_checksums,
    refuse_existing,
    write_json,
)
from convert_weights.shards import Entry, Shards, parse_size
from convert_weights.weights import MergedWeights, QaJaxWeights
from qa_jax import checkpoint, hf
from qa_jax.config import to_hf as config_to_hf
from qa_jax.errors import InputError
from qa_jax.terminal import Progress


def to_hf(
    source: str | Path,
    dest: str | Path,
    shard_size: str = "5GB",
    dtype: str | None = None,
    step: int | None = None,
    progress: Progress | None = None,
) -> str:
    """Converts a qa_jax checkpoint, or an adapter merged into its base model, into a Hugging Face
    directory in the released layout.

    A few tensors are in memory at a time; after an interruption, the same call resumes.

    Args:
        source: the checkpoint or the adapter.
        dest: the new directory.
        shard_size: size of the largest file, for example "5GB"; a tensor is never split.
        dtype: "bfloat16" or "float32"; None keeps the stored dtypes, bit for bit.
        step: of a training run; the latest by default.
        progress: called with bytes written.

    Returns:
        The checksum of all tensors as written.
    """
    limit = parse_size(shard_size)
    refuse_existing(dest)
    weights = _open(source, step)
    dtypes = {n: np.dtype(jax.numpy.dtype(dtype or weights.dtype(n))) for n in weights.tensors}
    entries = {n: Entry(t.hf_shape, dtypes[n]) for n, t in weights.tensors.items()}
    # checksums.json describes a conversion's step 0, not the steps of training.
    expected = read_checksums(source) if dtype is None and weights.step == 0 else {}
    names = {t.name for t in dtypes.values()}
    torch_dtype = names.pop() if len(names) == 1 else "float32"
    raw = config_to_hf(weights.config) | {"torch_dtype": torch_dtype}
    origin = [str(weights.directory.resolve()), weights.step]
    description = {"to": "hf", "source": origin, "limit": limit, "dtype": dtype, "config": raw}
    with ConversionJob(dest, description, sum(e.size for e in entries.values())) as job:
        shards = Shards(job.partial, entries, limit)
        if not job.resumed:
            shards.create()
            job.mark_preallocated()

        def convert(tensor: hf.TensorSpec) -> str:
            written = Checksum()

            def blocks() -> Iterator[np.ndarray]:
                for block in weights.read(tensor):
                    written.add(cast := block.astype(dtypes[tensor.hf], copy=False))
                    yield cast

            shards.write(tensor.hf, blocks())
            compare(tensor.hf, source, expected, written.value)
            return written.value

        items = {n: (t, entries[n].size) for n, t in weights.tensors.items()}
        job.convert_all(items, convert, progress)
        shards.finish()
        checkpoint.copy_tokenizer_files(source, job.partial)
        write_json(job.partial / "config.json", raw)
        return job.finish()


def _open(source: str | Path, step: int | None) -> MergedWeights | QaJaxWeights:
    weights = (MergedWeights if checkpoint.is_adapter(source) else QaJaxWeights)(source, step)
    if weights.config.weights == "int8":
        raise InputError(
            source, "its weights are int8, for inference alone", "convert the original checkpoint"
        )
    return weights
