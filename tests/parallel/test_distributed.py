"""Finding the other processes by each cluster's own environment variables, on loopback."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from qa_jax.errors import InputError
from qa_jax.parallel import initialize_distributed
from qa_jax.parallel.distributed import _local_device_ids

CHILD = """
import os, jax
from qa_jax.parallel import gather_texts, initialize_distributed
print(initialize_distributed())
print(sorted(gather_texts(str(jax.process_index()))))
"""
CLUSTER = ("SLURM_", "OMPI_", "TPU_", "JAX_COORDINATOR", "JAX_NUM_P", "JAX_PROCESS", "KUBERNETES")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(variables: Callable[[int], dict[str, str]], processes: int = 2) -> list[str]:
    """What each of the processes prints, started with its variables."""
    base = {k: v for k, v in os.environ.items() if not k.startswith(CLUSTER)}
    base |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_COORDINATOR_PORT": str(free_port())}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=base | variables(i),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert all(child.returncode == 0 for child in children), "\n".join(outputs)
    return outputs


def check(outputs: list[str], found_by: str) -> None:
    for i, output in enumerate(outputs):
        assert f"process {i} of 2 ({found_by}) on {socket.gethostname()}: 1 of 2 devices" in output
        assert "['0', '1']" in output


def test_slurm() -> None:
    def variables(index: int) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": "4711",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index),
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_TASKS_PER_NODE": "2",
        }

    check(start(variables), "Slurm")


def test_open_mpi() -> None:
    def variables(index: int) -> dict[str, str]:
        return {
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1,10.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(index),
            "OMPI_COMM_WORLD_LOCAL_RANK": str(index),
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        }

    check(start(variables), "Open MPI")


@pytest.mark.parametrize("slices", [1, 2])
def test_gke_tpu(slices: int) -> None:
    """A slice of two hosts, and two slices of one, as GKE's webhook describes them."""

    def variables(index: int) -> dict[str, str]:
        # JAX_FORCE_TPU_INIT: as if this machine had TPU chips.
        found = {"JAX_FORCE_TPU_INIT": "1"}
        if slices == 1:
            return found | {
                "TPU_WORKER_HOSTNAMES": "localhost,localhost",
                "TPU_WORKER_ID": str(index),
                "MEGASCALE_COORDINATOR_ADDRESS": "",
                "MEGASCALE_NUM_SLICES": "1",
                "MEGASCALE_SLICE_ID": "0",
            }
        return found | {
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": str(index),
        }

    check(start(variables), "TPU environment")


class _Metadata(http.server.BaseHTTPRequestHandler):
    """A TPU VM's metadata server; the worker's number is the first part of the path."""

    def do_GET(self) -> None:
        index, _, key = self.path.strip("/").partition("/")
        key = key.rpartition("/")[2]
        answers = {
            "agent-worker-number": index,
            "worker-network-endpoints": "unknown:0:localhost,unknown:1:localhost",
            "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nNODE_ID: 'pod'",
        }
        self.send_response(200 if key in answers else 404)
        self.end_headers()
        self.wfile.write(answers.get(key, "").encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("localhost", 0), _Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"localhost:{server.server_port}"
    server.shutdown()


def test_tpu_vm(metadata_server: str, tmp_path: Path) -> None:
    """A pod slice of TPU VMs, which only the metadata server describes."""

    def variables(index: int) -> dict[str, str]:
        # JAX looks for chips when it is imported, and sets TPU_SKIP_MDS_QUERY where there are none.
        (tmp_path / "sitecustomize.py").write_text(
            "import os, jax\nos.environ.pop('TPU_SKIP_MDS_QUERY', None)\n"
        )
        return {
            "JAX_FORCE_TPU_INIT": "1",
            "GCE_METADATA_IP": f"{metadata_server}/{index}",
            "PYTHONPATH": str(tmp_path),
        }

    check(start(variables), "TPU metadata")


def test_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX asks the API server, which is not imitated here: an indexed job is left to it, a pod
    without an index is one process."""
    for name in [n for n in os.environ if n.startswith(CLUSTER)]:
        monkeypatch.delenv(name)
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.append(given))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "(no cluster found)" in initialize_distributed() and not asked
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    assert "(Kubernetes)" in initialize_distributed() and asked == [{"local_device_ids": None}]


def test_explicit_addresses() -> None:
    """As in the manifests of docs/launching.md, and over what a cluster says."""
    address = f"localhost:{free_port()}"

    def variables(index: int) -> dict[str, str]:
        return {
            "SLURM_NTASKS": "8",
            "SLURM_PROCID": "5",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }

    check(start(variables), "JAX_COORDINATOR_ADDRESS")


def test_one_process_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop, and a Slurm allocation of one task."""
    for name in [n for n in os.environ if n.startswith(CLUSTER)]:
        monkeypatch.delenv(name)
    assert initialize_distributed().startswith("process 0 of 1 (no cluster found) on ")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert "(no cluster found)" in initialize_distributed()
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(InputError, match="set all three or none"):
        initialize_distributed()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, []),
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "8", "CUDA_VISIBLE_DEVICES": "3"}, []),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, []),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, None),
    ],
)
def test_the_only_process_of_a_node_takes_all_its_devices(
    variables: dict[str, str], expected: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX alone would give a Slurm job with one task a node one of the node's eight GPUs."""
    for name in ("SLURM_STEP_TASKS_PER_NODE", "OMPI_COMM_WORLD_LOCAL_SIZE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _local_device_ids() == expected
