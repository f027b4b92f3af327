"""The server as a process of its own: what it holds in memory, and what it leaves when it ends."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.parameter_server.jobs import SECONDS, SECRET, push
from tfdist.cluster.store import StoreClient, StoreServer
from tfdist.parameter_server import spawn
from tfdist.parameter_server.client import Client, Options, Tensor
from tfdist.parameter_server.recovery import Recovery
from tfdist.parameter_server.rules import make_rule

pytestmark = pytest.mark.usefixtures("nothing_left")

ADAM = make_rule("adam", beta_1=0.9, beta_2=0.999, epsilon=1e-7)
ELEMENTS = 4_000_000
SHARD_BYTES = 4 * ELEMENTS


def started(num_servers=1, **environ):
    """Starts servers; returns their addresses, their processes and how to stop them."""
    before = _processes()
    addresses, stop = spawn.start(num_servers, world_size=1, secret=SECRET, host="127.0.0.1", timeout=SECONDS,
                                  environ={**os.environ, **environ})  # fmt: skip
    return addresses, sorted(_processes() - before), stop


def _processes():
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return set(map(int, children.read().split()))


def _resident_bytes(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_memory_is_the_shard_its_state_and_what_it_receives(transport):
    addresses, (pid,), stop = started()
    client = Client(addresses, 0, SECRET, transport=transport)
    try:
        before = _resident_bytes(pid)
        store = client.add_store("model", [Tensor("w", (ELEMENTS,), "float32", ADAM)], Options())
        store.begin(0, 0)
        for _ in range(3):
            push(store, np.ones(ELEMENTS, "f"))
        grown = _resident_bytes(pid) - before
        # Parameters, two slots, and gradients that become the answer.
        assert 0.95 * 4 * SHARD_BYTES < grown < 4 * SHARD_BYTES + (8 << 20)
        with open(f"/proc/{pid}/maps") as maps:
            assert "tensorflow" not in maps.read().replace("libtfdist_tensorflow", "")
    finally:
        client.close()
        stop()


@pytest.mark.parametrize("num_servers", [1, 2])
def test_servers_leave_their_summary_before_they_are_gone(num_servers):
    with StoreServer(secret=SECRET) as rendezvous:
        addresses, pids, stop = started(num_servers, TFDIST_STORE=rendezvous.address)
        try:
            assert [os.getpgid(pid) for pid in pids] == pids  # what ends this process's group does not end them
            client = Client(addresses, 0, SECRET)
            store = client.add_store("model", [Tensor("w", (ELEMENTS,), "float32", ADAM)], Options())
            store.begin(0, 0)
            push(store, np.ones(ELEMENTS, "f"))
            client.close()
        finally:
            stop()
        with StoreClient(rendezvous.address, SECRET) as left:
            for index in range(num_servers):
                summary = json.loads(left.get(f"parameter_server/summary/{index}", timeout=SECONDS))
                assert (summary["server"], summary["updates"]) == (index, 1)
                assert summary["parameters_bytes"] == SHARD_BYTES // num_servers
                assert summary["workers"]["0"]["staleness"] == {"0": 1}


@contextlib.contextmanager
def provided(rendezvous, folder, incarnation):
    """Yields a server as `tfdist run --servers` starts it."""
    place = {
        "TFDIST_SERVER": "0",
        "TFDIST_NUM_SERVERS": "1",
        "TFDIST_WORLD_SIZE": "1",
        "TFDIST_STORE": rendezvous.address,
    }
    recovers = {"TFDIST_RECOVER": "1", "TFDIST_INCARNATION": str(incarnation), "TFDIST_SNAPSHOTS": str(folder)}
    variables = {**os.environ, **place, **recovers, "TFDIST_SECRET": SECRET.decode(), "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, "-m", "tfdist.parameter_server"], env=variables)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_server_of_the_launcher_goes_on_at_another_address(tmp_path):
    with StoreServer(secret=SECRET) as rendezvous, StoreClient(rendezvous.address, SECRET) as asked:

        def find(_):
            return asked.get("parameter_server/0", timeout=SECONDS).decode()

        with provided(rendezvous, tmp_path, 0) as first:
            before = find(0)
            client = Client([before], 0, SECRET, recovery=Recovery(seconds=SECONDS, find=find))
            store = client.add_store("model", [Tensor("w", (8,), "float64", make_rule("add"))], Options())
            store.write(0, [np.full(8, 5.0)])
            store.begin(1, 0, tell=True)
            _, current = push(store, np.ones(8))
            first.kill()
        with provided(rendezvous, tmp_path, 1) as second:
            try:
                assert push(store, np.ones(8), current=current)[1][0][0] == 7
                assert find(0) != before
            finally:
                client.close()
            second.terminate()
            assert second.wait(SECONDS) == 0
    assert not os.listdir(tmp_path)
