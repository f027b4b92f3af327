"""Servers that are killed and come back: no call fails, nothing is applied twice, and what workers know is not lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.parameter_server.jobs import SECONDS, SECRET, Worker, push, read, sgd, zeros
from tests.parameter_server.processes import children
from tfdist import errors
from tfdist.parameter_server import spawn
from tfdist.parameter_server.client import Client, Options, Tensor
from tfdist.parameter_server.keeper import Keeping
from tfdist.parameter_server.recovery import Recovery
from tfdist.parameter_server.rules import make_rule
from tfdist.parameter_server.server import ParameterServer

pytestmark = pytest.mark.usefixtures("nothing_left")

N = 50_000
ADD = make_rule("add")
COUNTERS = [Tensor("w", (N,), "float64", ADD), Tensor("v", (7, 3), "float64", ADD)]
TABLE = Tensor("e", (64, 4), "float64", ADD)
RECOVERY = Recovery(seconds=SECONDS)
ROWS = (np.array([3, 60, 3]), np.ones((3, 4)))
ADAM = make_rule("adam", beta_1=0.9, beta_2=0.999, epsilon=1e-7)


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


def await_updates(workers, store, server, count):
    """Waits until a server has seen so many more updates."""
    before = store.summaries()[server]["updates"]
    while store.summaries()[server]["updates"] < before + count:
        for worker in workers:
            assert worker.is_alive(), worker.result()
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
    counting.store.flush(counting.current)
    counting.store.set_active(False)
    return counting.pushes


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_killed_server_goes_on_with_what_the_workers_have(transport, prefetch):
    with recovering(2, 2, transport, COUNTERS) as stores:
        over = []
        workers = [Worker(train, Counting(s, prefetch=prefetch), 5, lambda: over) for s in stores]
        for server in (0, 1, 0):
            kill(server)
            await_updates(workers, stores[0], 0, 10)
        over.append(True)
        total = sum(worker.result() for worker in workers)
        w, v = read(stores[0])
        assert (w == w[0]).all() and (v == v[0, 0]).all()
        assert (w[0], v[0, 0], stores[0].summaries()[0]["updates"]) == (total, total, total)


def count_through_kills(stores, kills, rows=None):
    """Trains while servers are killed; returns how many pushes there were, and the store's parameters."""
    over = []
    workers = [Worker(train, Counting(store, rows), 5, lambda: over) for store in stores]
    for server in kills:
        kill(server)
        await_updates(workers, stores[0], server, 3 * len(stores))
    over.append(True)
    total = sum(worker.result() for worker in workers)
    return total, read(stores[0])


def test_with_replicas_nothing_is_lost(transport):
    """Not even of a table of which nobody has a copy, as only rows are pushed to it."""
    with recovering(2, 3, transport, [*COUNTERS, TABLE], replicas=2) as stores:
        total, (w, v, e) = count_through_kills(stores, (0, 1, 2), ROWS)
    assert (w == total).all() and (v == total).all()
    assert (e[3] == 2 * total).all() and (e[60] == total).all() and e.sum() == 4 * 3 * total


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_twenty_kills_in_one_job(replicas):
    kills = [i % 2 for i in range(20)]
    with recovering(3, 2, "shm", [*COUNTERS, TABLE], replicas=replicas) as stores:
        total, (w, v, e) = count_through_kills(stores, kills, ROWS)
    assert (w == total).all() and (v == total).all()  # of these each worker had a copy
    assert (e[60] <= total).all()  # none twice; with one copy, those of 20 intervals may lack
    assert (e[3] == 2 * e[60]).all()
    assert replicas == 1 or (e[60] == total).all()


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_step_of_all_workers_is_done_once(transport, replicas):
    with recovering(2, 2, transport, COUNTERS, mode="sync", replicas=replicas) as stores:
        counters, last = [Counting(store) for store in stores], []
        workers = [Worker(in_step, counting, last) for counting in counters]
        for server in (0, 1):
            kill(server)
            await_updates(workers, stores[0], server, 5)
        last.append(counters[0].pushes + 5)  # the other one is at most a step ahead
        for worker in workers:
            w, v = worker.result()
            assert (w == last[0]).all() and (v == last[0]).all()
        assert stores[0].summaries()[0]["updates"] == last[0]


def in_step(counting, last):
    """Steps until the last one; returns what came back then."""
    while not last or counting.pushes < last[0]:
        counting.step()
        assert counting.current[0][0] == counting.pushes, "each step is the mean of ones, and counts once"
    counting.store.set_active(False)
    return counting.current


@contextlib.contextmanager
def server_that_moves(folder, tensors, rank=0):
    """Yields a store and a function that ends its server as if it were killed, and starts another one elsewhere."""
    servers = [ParameterServer(1, SECRET, timeout=SECONDS, keeping=Keeping(str(folder)))]

    def move(*, snapshot):
        if snapshot:
            servers[-1]._keeper.write()
        servers[-1].close(clear=False)
        servers.append(
            ParameterServer(1, SECRET, timeout=SECONDS, keeping=Keeping(str(folder), incarnation=len(servers)))
        )

    recovery = Recovery(seconds=SECONDS, find=lambda _: servers[-1].address)
    client = Client([servers[0].address], rank, SECRET, timeout=SECONDS, recovery=recovery)
    try:
        store = client.add_store("model", tensors, Options())
        store.write(0, [np.zeros(t.shape) for t in tensors])
        store.begin(1, 0, tell=True)
        store.set_active(True)
        yield store, move
    finally:
        client.close()
        servers[-1].close()
    assert not os.path.exists(folder)


def adam_steps(store, steps, current):
    rng = np.random.default_rng(len(steps))
    for _ in steps:
        fresh = zeros(store)
        gradients = [rng.normal(size=t.shape) for t in store.tensors]
        store.exchange(gradients, fresh, learning_rate=0.1, current=current)
        current = fresh
    return current


def adam_reference(tmp_path, counts):
    with server_that_moves(tmp_path / "reference", [Tensor("w", (N,), "float64", ADAM)]) as (store, _):
        current = read(store)
        for count in counts:
            current = adam_steps(store, range(count), current)
    return current[0]


def test_the_optimizers_state_is_that_of_the_snapshot(tmp_path):
    expected = adam_reference(tmp_path, (4, 3))
    with server_that_moves(tmp_path / "a", [Tensor("w", (N,), "float64", ADAM)]) as (store, move):
        current = adam_steps(store, range(4), read(store))
        move(snapshot=True)
        current = adam_steps(store, range(3), current)
        assert store.summaries()[0]["updates"] == 7
        moments = zeros(store)
        store.read(1, moments)
        assert (moments[0] != 0).all()
    np.testing.assert_array_equal(current[0], expected)


def test_parameters_are_those_of_the_worker_where_the_snapshot_is_older(tmp_path):
    with server_that_moves(tmp_path / "a", [Tensor("w", (N,), "float64", ADAM)]) as (store, move):
        current = adam_steps(store, range(4), read(store))
        move(snapshot=False)
        fresh = zeros(store)
        zero = [np.zeros(N)]
        store.exchange(zero, fresh, learning_rate=0.0, current=current)
        np.testing.assert_array_equal(fresh[0], current[0])  # not the zeros that are in the snapshot
        assert store.summaries()[0]["updates"] == 5


def test_a_reading_offers_what_the_worker_has(tmp_path):
    with server_that_moves(tmp_path / "a", [Tensor("w", (N,), "float64", ADAM)]) as (store, move):
        current = adam_steps(store, range(4), read(store))
        move(snapshot=False)
        again = zeros(store)
        assert store.read(0, again, current) == 4
        np.testing.assert_array_equal(again[0], current[0])


def test_rows_are_pulled_from_the_server_that_comes_back(tmp_path):
    with server_that_moves(tmp_path / "a", [TABLE]) as (store, move):
        push(store, ROWS)
        move(snapshot=True)
        np.testing.assert_array_equal(store.pull_rows(0, [3, 60, 5])[:, 0], [2, 1, 0])
        assert push(store, ROWS)[1][0][3, 0] == 4
        np.testing.assert_array_equal(store.pull_rows(0, [3, 60, 5])[:, 0], [4, 2, 0])


def test_a_server_that_does_not_come_back():
    server = ParameterServer(1, SECRET, timeout=SECONDS)
    client = Client([server.address], 0, SECRET, timeout=SECONDS, recovery=Recovery(seconds=0.2))
    try:
        store = client.add_store("model", [sgd("w", (8,))], Options())
        store.begin(0, 0)
        push(store, np.ones(8))
        server.close()
        text = "parameter server 0 at .* failed on rank 0 after 1 updates: it is lost and did not come back within timeout 0.2 s"
        with pytest.raises(errors.ServerLostError, match=text):
            push(store, np.ones(8))
        with pytest.raises(errors.ServerLostError, match="was expected to answer 'summary' on rank 0"):
            store.summaries()
    finally:
        client.close()
        server.close()


def test_replicas_need_two_servers():
    with pytest.raises(
        errors.ConfigurationError, match="at least two parameter servers. Received: server_replicas=2, 1 ser"
    ):
        Client(["127.0.0.1:1"], 0, SECRET, replicas=2)


def test_servers_outlive_the_chief_while_somebody_uses_them(tmp_path):
    script = (
        "from tfdist.parameter_server import spawn; import os, sys\n"
        "addresses, stop = spawn.start(1, world_size=2, secret=b's' * 32, host='127.0.0.1', timeout=9, recovers=True)\n"
        "print(addresses[0], flush=True); sys.stdin.read()\n"
    )
    variables = {**os.environ, "PYTHONPATH": os.getcwd(), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], env=variables, text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as chief:  # fmt: skip
        client = Client([chief.stdout.readline().strip()], 1, SECRET, timeout=SECONDS, recovery=RECOVERY)
        try:
            store = client.add_store("model", COUNTERS[1:], Options())
            store.begin(1, 0, tell=True)
            push(store, np.ones((7, 3)))
            chief.kill()
            chief.wait()
            time.sleep(2.0)  # longer than a server stays that nobody uses
            assert push(store, np.ones((7, 3)))[1][0][0, 0] == 2
        finally:
            client.close()
        assert chief.stdout.read() == ""  # the server, which writes to it too, has ended
    assert not os.listdir(tmp_path)
