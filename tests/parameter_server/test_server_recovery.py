"""Servers that are killed and come back: no call fails, nothing is applied twice, and what workers know is not lost."""

import contextlib
import os
import signal
import time

import numpy as np
import pytest

from tests.parameter_server.jobs import SECONDS, SECRET, Worker, push, read, sgd, together, zeros
from tests.parameter_server.processes import children
from tfdist.parameter_server import spawn
from tfdist.parameter_server.client import Client, Options, Tensor
from tfdist.parameter_server.recovery import Recovery
from tfdist.parameter_server.rules import make_rule

pytestmark = pytest.mark.usefixtures("nothing_left")

N = 50_000
ADD = make_rule("add")
COUNTERS = [Tensor("w", (N,), "float64", ADD), Tensor("v", (7, 3), "float64", ADD)]
TABLE = Tensor("e", (64, 4), "float64", ADD)
RECOVERY = Recovery(seconds=SECONDS)


@contextlib.contextmanager
def recovering(num_workers, num_servers, transport, tensors, *, replicas=1, **options):
    """Yields the workers' stores, on servers that are started again when they are killed."""
    addresses, stop = spawn.start(num_servers, world_size=num_workers, secret=SECRET, host="127.0.0.1",
                                  timeout=SECONDS, recovers=True)  # fmt: skip
    clients = []
    try:
        for rank in range(num_workers):
            arguments = {"timeout": SECONDS, "transport": transport, "recovery": RECOVERY, "replicas": replicas}
            clients.append(Client(addresses, rank, SECRET, **arguments))
        stores = [client.add_store("model", tensors, Options(**options)) for client in clients]
        stores[0].write(0, [np.zeros(t.shape) for t in tensors])
        stores[0].begin(1, 0, tell=True)
        for store in stores:
            store.begin(1, 0)
            store.set_active(True)
            read(store)
        yield stores
    finally:
        for client in clients:
            client.close()
        stop()
    assert not children("tfdist.parameter_server")


def kill(server):
    """Kills a server and waits until there is another process."""
    (pid,) = children(f"--index\0{server}\0")
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + SECONDS
    while children(f"--index\0{server}\0") in ([], [pid]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Counting:
    """A worker that adds ones, and tells the servers what they sent it last."""

    def __init__(self, store, rows=None, prefetch=False):
        self.store, self.rows, self.prefetch = store, rows, prefetch
        self.pushes = 0
        self.current = read(store)

    def step(self):
        fresh = [np.ones(t.shape) for t in self.store.tensors]
        gradients = list(fresh)
        current = list(self.current)
        if self.rows is not None:
            gradients[-1], fresh[-1], current[-1] = self.rows, None, None
        if self.prefetch:
            for target, now in zip(fresh, current):
                if target is not None:
                    target[...] = now
            gradients = [np.ones(t.shape) if g is not self.rows else g for t, g in zip(self.store.tensors, gradients)]
        self.store.exchange(gradients, fresh, learning_rate=1.0, current=current, prefetch=self.prefetch)
        self.pushes += 1
        self.current = fresh if self.rows is None else [*fresh[:-1], None]


def train(counting, steps_at_least, ends):
    while counting.pushes < steps_at_least or not ends():
        counting.step()
    counting.store.flush()
    counting.store.set_active(False)
    return counting.pushes


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_killed_server_goes_on_with_what_the_workers_have(transport, prefetch):
    with recovering(2, 2, transport, COUNTERS) as stores:
        over = []
        workers = [Worker(train, Counting(s, prefetch=prefetch), 5, lambda: over) for s in stores]
        for server in (0, 1, 0):
            kill(server)
            before = stores[0].summaries()[0]["updates"]
            while stores[0].summaries()[0]["updates"] < before + 10:
                time.sleep(0.01)
        over.append(True)
        total = sum(worker.result() for worker in workers)
        w, v = read(stores[0])
        assert (w == w[0]).all() and (v == v[0, 0]).all()
        assert (w[0], v[0, 0], stores[0].summaries()[0]["updates"]) == (total, total, total)
