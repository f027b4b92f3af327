"""Jobs of threads: workers are clients in this process, the servers too."""

import contextlib
import threading

import numpy as np

from tfdist.parameter_server.client import Client, Options, Tensor
from tfdist.parameter_server.rules import make_rule
from tfdist.parameter_server.server import ParameterServer

SECRET = b"s" * 32
SECONDS = 20.0  # no wait in a test takes longer


def sgd(name, shape, dtype="float64", **constants):
    """A tensor that plain SGD updates: theta -= rate * g."""
    return Tensor(name, shape, dtype, make_rule("sgd", **{"momentum": 0.0, **constants}))


class Job:
    """Servers and one client a worker.

    Args:
      clients: list of `Client`.
      servers: list of `ParameterServer`.
    """

    def __init__(self, clients, servers):
        self.clients = clients
        self.servers = servers

    def stores(self, tensors, *, name="model", initial=None, active=True, **options):
        """Declares the tensors on all workers; they begin with `initial`, or zeros."""
        stores = [client.add_store(name, tensors, Options(**options)) for client in self.clients]
        arrays = initial or [np.zeros(t.shape, t.dtype) for t in tensors]
        stores[0].write(0, arrays)
        stores[0].begin(1, 0, tell=True)
        for store in stores:
            store.begin(1, 0)
            store.set_active(active)
        return stores


@contextlib.contextmanager
def job(num_workers=2, num_servers=1, transport="shm", timeout=SECONDS):
    """Yields a `Job`."""
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(ParameterServer(num_workers, SECRET, timeout=timeout)) for _ in range(num_servers)
        ]
        addresses = [server.address for server in servers]
        clients = []
        stack.callback(lambda: [client.close() for client in clients])
        for rank in range(num_workers):
            clients.append(Client(addresses, rank, SECRET, timeout=timeout, transport=transport))
        yield Job(clients, servers)


def zeros(store):
    """Arrays that take a store's parameters."""
    return [np.zeros(t.shape, t.dtype) for t in store.tensors]


def read(store):
    """Returns a store's parameters."""
    arrays = zeros(store)
    store.read(0, arrays)
    return arrays


def push(store, *gradients, rate=1.0, **options):
    """Pushes copies of gradients; returns the result, and the parameters that came back."""
    fresh = zeros(store)
    return store.exchange(list(gradients), fresh, learning_rate=rate, **options), fresh


class Worker(threading.Thread):
    """Runs `function(*arguments)`; `result()` waits and gives what it returned, or raises what it raised."""

    def __init__(self, function, *arguments):
        super().__init__(daemon=True)
        self._call = (function, arguments)
        self._value = self._error = None
        self.start()

    def run(self):
        function, arguments = self._call
        try:
            self._value = function(*arguments)
        except BaseException as error:
            self._error = error

    def result(self):
        self.join(2 * SECONDS)
        assert not self.is_alive(), "the worker still waits"
        if self._error is not None:
            raise self._error
        return self._value


def together(*calls):
    """Runs functions at once and returns their results."""
    return [worker.result() for worker in [Worker(call) for call in calls]]


SIZE = 1000
MODEL = [sgd("w", (SIZE,)), sgd("e", (100, 4))]


@contextlib.contextmanager
def untouched(transport="shm", **options):
    """Yields a job and its stores; after the fault the parameters are as before, and the other worker trains."""
    with job(2, 1, transport) as running:
        stores = running.stores(MODEL, initial=[np.ones(SIZE), np.ones((100, 4))], **options)
        yield running, stores
        w, e = read(stores[1])
        assert (w == 1).all() and (e == 1).all()
        result, (fresh, _) = push(stores[1], np.ones(SIZE), None)
        assert (result.updates, fresh[0]) == (1, 0)
