"""A qa_jax checkpoint -> Hugging Face's safetensors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from convert_weights.shards import Entry, Shards, parse_size
from convert_weights.weights import Merged, Ours
from convert_weights.work import (
    Checksum,
    Progress,
    Work,
    compare,
    recorded,
    refuse_existing,
    write_json,
)
from qa_jax import checkpoint, hf
from qa_jax.config import to_hf as config_to_hf


def to_hf(
    source: str | Path,
    dest: str | Path,
    shard_size: str = "5GB",
    dtype: str | None = None,
    step: int | None = None,
    progress: Progress | None = None,
) -> str:
    """Converts a qa_jax checkpoint, or an adapter of ours merged into its model, into a Hugging
    Face directory in the released layout.

    A few tensors are held at a time; interrupted, the same call goes on where it stopped.

    Args:
        source: the checkpoint or the adapter.
        dest: the new directory.
        shard_size: the largest file, for example "5GB"; a tensor is never split.
        dtype: "bfloat16" or "float32"; None keeps the stored types, bit for bit.
        step: of a training run; the latest by default.
        progress: told of bytes written.

    Returns:
        The checksum of all tensors as they were written.
    """
    limit = parse_size(shard_size)
    refuse_existing(dest)
    weights = (Merged if checkpoint.is_adapter(source) else Ours)(source, step)
    types = {n: np.dtype(jax.numpy.dtype(dtype or weights.dtype(n))) for n in weights.tensors}
    entries = {n: Entry(t.hf_shape, types[n]) for n, t in weights.tensors.items()}
    # Checksums are of a conversion's own step; later ones are training's.
    expected = recorded(source) if dtype is None and weights.step == 0 else {}
    raw = config_to_hf(weights.config)
    names = {t.name for t in types.values()}
    raw["torch_dtype"] = names.pop() if len(names) == 1 else "float32"
    origin = [str(weights.directory.resolve()), weights.step]
    job = {"to": "hf", "source": origin, "limit": limit, "types": dtype, "config": raw}
    with Work(dest, job, sum(e.size for e in entries.values())) as work:
        shards = Shards(work.partial, entries, limit)
        if not work.resumed:
            shards.create()
            work.prepared()

        def convert(tensor: hf.Tensor) -> str:
            written = Checksum()

            def blocks() -> Iterator[np.ndarray]:
                for block in weights.read(tensor):
                    cast = block.astype(types[tensor.hf], copy=False)
                    written.add(cast)
                    yield cast

            shards.write(tensor.hf, blocks())
            compare(tensor.hf, source, expected, written.value)
            return written.value

        work.each({n: (t, entries[n].size) for n, t in weights.tensors.items()}, convert, progress)
        shards.finish()
        checkpoint.copy_text_files(source, work.partial)
        write_json(work.partial / "config.json", raw)
        return work.finish()
