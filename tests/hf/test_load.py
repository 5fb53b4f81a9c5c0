"""Loading onto devices from safetensors: only the needed slices are read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from qa_jax import hf
from qa_jax.checkpoint import load_weights
from qa_jax.config import MeshConfig, ModelConfig
from qa_jax.hf.load import read_part
from qa_jax.parallel import make_mesh
from qa_jax.trees import flatten_dict
from tests.hf_files import tied, write

COUNTING = """
import json, os, sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
preadv, total = os.preadv, 0
def counted(*arguments):
    global total
    n = preadv(*arguments)
    total += n
    return n
os.preadv = counted
from qa_jax import checkpoint, hf
from qa_jax.config import MeshConfig
from qa_jax.model import Qwen2Audio
from qa_jax.parallel import make_mesh
from qa_jax.trees import flatten_dict
config, source = hf.open_model(sys.argv[3])
mesh = make_mesh(MeshConfig(1, -1, 2))
places = jax.tree.map(lambda x: x.sharding, checkpoint.abstract_params(Qwen2Audio(config), mesh))
params = hf.load_params(source, config, places)
assert mesh.devices.size == 8 and jax.process_count() == 2
out = {"/".join(p): [float(s.data.astype("float32").sum()) for s in x.addressable_shards]
        for p, x in flatten_dict(params).items()}
print(json.dumps({"bytes": total, "out": out}))
"""


@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 2, 2), (8, 1, 1)])
@pytest.mark.parametrize("tie", [False, True])
def test_every_shard_is_its_slice(
    tiny: ModelConfig, tmp_path: Path, sizes: tuple[int, int, int], tie: bool
) -> None:
    write(tmp_path, tied(tiny) if tie else tiny, dtype=ml_dtypes.bfloat16)
    whole = flatten_dict(load_weights(tmp_path)[1])
    mesh = make_mesh(MeshConfig(*sizes))
    cut = 0
    for path, array in flatten_dict(load_weights(tmp_path, mesh)[1]).items():
        assert array.dtype == whole[path].dtype == ml_dtypes.bfloat16
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[path][shard.index])
            cut += shard.data.shape != array.shape
    assert cut or sizes == (8, 1, 1)


def test_any_part_of_any_layout(tiny: ModelConfig, tmp_path: Path) -> None:
    """Not only what today's sharding rules cut: random slices of every dimension."""
    write(tmp_path, tiny)
    config, source = hf.open_model(tmp_path)
    rng = np.random.default_rng(0)
    for tensor in hf.tensor_map(config).values():
        whole = tensor.from_hf(source.read(tensor.hf))
        for _ in range(5):
            ends = [sorted(rng.choice(n + 1, 2, replace=False)) for n in tensor.shape]
            index = tuple(slice(int(a), int(b)) for a, b in ends)
            np.testing.assert_array_equal(read_part(source, tensor, index), whole[index])


def test_each_of_two_processes_reads_half(tiny: ModelConfig, tmp_path: Path) -> None:
    """Bytes asked of the system, with four devices in each of two processes."""
    write(tmp_path, tiny)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTING, address, str(i), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for i in range(2)
    ]
    output = [p.communicate(timeout=120) for p in processes]
    assert all(p.returncode == 0 for p in processes), output
    found = [json.loads(out.splitlines()[-1]) for out, _ in output]
    params = flatten_dict(load_weights(tmp_path)[1])
    size = sum(x.nbytes for x in params.values())
    # Norms and biases are not cut, so each reads them whole.
    for each in found:
        assert 0.45 * size < each["bytes"] < 0.65 * size
    mesh = make_mesh(MeshConfig(1, 4, 2))
    for path, array in flatten_dict(load_weights(tmp_path, mesh)[1]).items():
        out = found[0]["out"]["/".join(path)] + found[1]["out"]["/".join(path)]
        here = [float(s.data.astype("float32").sum()) for s in array.addressable_shards]
        assert sorted(out) == pytest.approx(sorted(here), rel=1e-4, abs=1e-4)
        assert jax.process_count() == 1
