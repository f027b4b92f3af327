"""Two processes with the variables of each launcher form a group and add two arrays."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = str(pathlib.Path(__file__).resolve().parents[2])
CODE = """
import numpy as np
from tfdist import comm
group = comm.default_group()
print(group.rank, group.all_reduce(np.full(3, group.rank + 1.0, np.float32)).tolist())
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def tf_config():
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    return [{"TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": rank}})}
            for rank in range(2)]  # fmt: skip


def torchrun():
    (port,) = free_ports(1)
    return [{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2",
             "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)} for rank in range(2)]  # fmt: skip


def slurm():
    (port,) = free_ports(1)
    return [{"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
             "SLURM_STEP_NODELIST": "n1", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_JOB_ID": "1",
             "TFDIST_PORT": str(port)} for rank in range(2)]  # fmt: skip


def open_mpi():
    return [{"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
             "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "a@1"} for rank in range(2)]  # fmt: skip


def hydra():
    return [{"PMI_RANK": str(rank), "PMI_SIZE": "2", "MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": "2"}
            for rank in range(2)]  # fmt: skip


@pytest.mark.multiprocess
@pytest.mark.parametrize("environment", [tf_config, torchrun, slurm, open_mpi, hydra])
def test_workers_meet(environment, tmp_path):
    """No secret is given: on one host they agree on this user's own."""
    folders = {"XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "TFDIST_TIMEOUT": "30"}
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("TFDIST_", "SLURM_", "TF_CONFIG"))
    }
    workers = [
        subprocess.Popen([sys.executable, "-c", CODE], env={**clean, **folders, **variables, "PYTHONPATH": ROOT},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for variables in environment()
    ]  # fmt: skip
    try:
        for rank, worker in enumerate(workers):
            stdout, stderr = worker.communicate(timeout=60)
            assert stdout == f"{rank} [3.0, 3.0, 3.0]\n", stderr
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
