"""What can go wrong: one clear error for the worker concerned; the others and the stored parameters are untouched."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.parameter_server.jobs import MODEL, SECONDS, SECRET, Worker, job, push, read, sgd, untouched
from tests.parameter_server.jobs import SIZE as N
from tests.parameter_server.processes import children
from tfdist import errors
from tfdist.launch import summary
from tfdist.parameter_server import spawn
from tfdist.parameter_server.client import Client, Options, Tensor
from tfdist.parameter_server.rules import make_rule
from tfdist.parameter_server.server import ParameterServer

pytestmark = pytest.mark.usefixtures("nothing_left")

# Who is there


def test_a_server_that_is_not_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with ParameterServer(1, SECRET) as server:
            with pytest.raises(
                errors.RendezvousError, match=rf"Parameter server 1 was expected to answer at {address} to rank 0"
            ):
                Client([server.address, address], 0, SECRET)


def test_another_secret():
    with untouched() as (running, _):
        with pytest.raises(errors.AuthenticationError, match="was expected to know this job's secret"):
            Client([running.servers[0].address], 0, b"t" * 32)


def test_a_rank_that_the_job_does_not_have():
    with untouched() as (running, _):
        client = Client([running.servers[0].address], 2, SECRET)
        try:
            with pytest.raises(
                errors.ServerLostError, match="Parameter server 0 at .* was expected to answer 'declare' on rank 2"
            ):
                client.add_store("model", MODEL, Options())
        finally:
            client.close()


def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            errors.ConfigurationError, match=f"free port was expected. Received: host='127.0.0.1', port={port}"
        ):
            ParameterServer(1, SECRET, port=port)


def test_a_client_that_is_closed():
    with job(1) as running:
        (store,) = running.stores(MODEL)
        running.clients[0].close()
        running.clients[0].close()
        with pytest.raises(
            errors.TransportError, match="The client of the parameter servers is closed. Make a new strategy."
        ):
            push(store, np.ones(N), None)


# Different models


@pytest.mark.parametrize(
    "other, text",
    [
        ([sgd("w", (N + 1,)), MODEL[1]], "shape of tensor 'w': \\[1000\\] and \\[1001\\]"),
        ([sgd("w", (N,), "float32"), MODEL[1]], "dtype of tensor 'w': 'float64' and 'float32'"),
        ([MODEL[0], sgd("v", (100, 4))], "name of tensor 'e': 'e' and 'v'"),
        ([sgd("w", (N,), momentum=0.9), MODEL[1]], "rule of tensor 'w': .*0.0.* and .*0.9"),
        ([dataclasses.replace(MODEL[0], decays=True), MODEL[1]], "decays of tensor 'w': False and True"),
        (MODEL[:1], "the number of tensors: 2 and 1"),
    ],
)
def test_different_models(other, text):
    with untouched() as (running, _):
        with pytest.raises(errors.MismatchError, match=f"rank 0 and rank 1 differ in {text}"):
            running.clients[1].add_store("model", other, Options())


def test_different_options():
    with untouched() as (running, _):
        with pytest.raises(errors.MismatchError, match="differ in mode: 'async' and 'bounded'"):
            running.clients[1].add_store("model", MODEL, Options(mode="bounded"))


def test_sync_workers_that_push_different_tensors(transport):
    with job(2, 1, transport) as running:
        one, two = running.stores(MODEL, initial=[np.ones(N), np.ones((100, 4))], mode="sync")
        first = Worker(lambda: one.exchange([np.ones(N), None], [np.ones(N), None], learning_rate=1.0))
        second = Worker(lambda: two.exchange([None, np.ones((100, 4))], [None, np.ones((100, 4))], learning_rate=1.0))
        for worker in (first, second):
            with pytest.raises(
                errors.MismatchError, match="worker 0 pushes as gradient 0 of 1 all of w, worker 1 of 1 all of e"
            ):
                worker.result()
        assert (read(one)[0] == 1).all()
        answers = [Worker(push, store, np.ones(N), None) for store in (one, two)]
        assert [a.result()[0].updates for a in answers] == [1, 1]


@pytest.mark.parametrize("dtype, rule", [("float16", make_rule("sgd", momentum=0.0)), ("int64", make_rule("add"))])
def test_a_type_that_no_rule_updates(dtype, rule):
    with untouched() as (running, _):
        with pytest.raises(
            errors.ConfigurationError, match="A store of 8 bytes was expected to be possible|is expected"
        ):
            running.clients[0].add_store(
                "odd", [Tensor("w", (4 if dtype == "float16" else 1,), dtype, rule)], Options()
            )


# Gradients


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["dense", "rows"])
def test_a_gradient_that_is_not_finite_is_not_pushed(transport, place, value):
    gradient, rows = np.ones(N), (np.array([3, 4]), np.ones((2, 4)))
    (gradient if place == "dense" else rows[1])[-1] = value
    name = "w" if place == "dense" else "e"
    with untouched(transport) as (_, (store, _)):
        with pytest.raises(
            errors.NonFiniteGradientError, match=f"NaN or infinity in the gradient of {name} on rank 0 after 0 updates"
        ):
            push(store, gradient, rows)
        result, (w, _) = push(store, gradient, rows, not_finite="skip")
        assert (result.is_skipped, result.updates, w[0]) == (1, 0, 1)


def test_a_gradient_may_be_passed_as_it_is(transport):
    with job(1, 1, transport) as running:
        (store,) = running.stores(MODEL)
        assert np.isnan(push(store, np.full(N, np.nan), None, not_finite="pass")[1][0]).all()


@pytest.mark.parametrize("row", [-1, 4000, 2**40])
def test_rows_out_of_range(transport, row):
    """None of the servers gets any of it."""
    initial = np.arange(16000.0).reshape(4000, 4)
    text = f"Rows of e are expected to be >= 0 and < 4000. Received: row={row} on rank 0; nothing was pushed"
    with job(1, 2, transport) as running:
        (store,) = running.stores([sgd("e", (4000, 4))], initial=[initial])
        with pytest.raises(errors.ConfigurationError, match=text):
            push(store, (np.array([1, row, 3999]), np.ones((3, 4))))
        with pytest.raises(errors.ConfigurationError, match=text):
            store.pull_rows(0, [1, row, 3999])
        np.testing.assert_array_equal(store.pull_rows(0, [1, 3999]), initial[[1, 3999]])
        np.testing.assert_array_equal(read(store)[0], initial)


def test_an_array_of_another_shape_or_type():
    with untouched() as (_, (store, _)):
        for bad in (np.ones(N + 1), np.ones(N, "f"), np.ones(2 * N)[::2]):
            with pytest.raises(
                errors.ConfigurationError, match=r"A contiguous array of shape \(1000,\) and type float64 was expected"
            ):
                store.exchange([bad, None], [np.ones(N), None], learning_rate=1.0)
        with pytest.raises(errors.ConfigurationError, match=r"of shape \(2, 4\) and type float64 was expected for e"):
            push(store, None, (np.array([1, 2]), np.ones((3, 4))))


def test_a_push_for_other_parameters(transport):
    with untouched(transport) as (_, (one, two)):
        one.begin(7, 0)
        with pytest.raises(errors.StaleUpdateError, match="of generation 7, the server's are of generation 1"):
            push(one, np.ones(N), None)
        one.begin(1, 0)
        assert push(one, np.ones(N), None, is_pushed=False)[1][0][0] == 1  # the error is over


def test_an_error_of_a_push_under_way_is_told_once(transport):
    with job(1, 2, transport) as running:
        (store,) = running.stores([sgd("e", (4000, 4))])
        store.begin(7, 0)
        push(store, np.ones((4000, 4)), prefetch=True)
        with pytest.raises(errors.StaleUpdateError, match="of generation 7"):
            push(store, np.ones((4000, 4)), prefetch=True)
        store.begin(1, 0)
        push(store, np.ones((4000, 4)), prefetch=True)
        store.flush()
        assert (read(store)[0] == -1).all()


# Who does not come


def test_a_bounded_worker_names_whom_it_waited_for(transport):
    with job(2, 1, transport, timeout=0.2) as running:
        fast, _ = running.stores(MODEL, mode="bounded", staleness_bound=0)
        with pytest.raises(
            errors.CollectiveTimeoutError,
            match="worker 1 is more than 0 steps behind and did not come within timeout 0.2 s",
        ):
            push(fast, np.ones(N), None)


def test_a_sync_worker_names_whom_it_waited_for(transport):
    with job(3, 1, transport, timeout=0.2) as running:
        stores = running.stores(MODEL, mode="sync")
        with pytest.raises(
            errors.CollectiveTimeoutError, match="no gradient came from worker 1, 2 within timeout 0.2 s"
        ):
            push(stores[0], np.ones(N), None)


def test_a_server_that_stops_while_a_worker_waits(transport):
    with job(2, 1, transport) as running:
        one, _ = running.stores(MODEL, mode="sync")
        waiting = Worker(push, one, np.ones(N), None)
        while not one.summaries()[0]["workers"]["0"]["bytes_received"]:
            pass
        running.servers[0].close()
        with pytest.raises(errors.TransportError, match="the parameter server was stopped|its connection is closed"):
            waiting.result()


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_server_that_is_killed(transport, prefetch):
    addresses, stop = spawn.start(2, world_size=1, secret=SECRET, host="127.0.0.1", timeout=SECONDS)
    client = Client(addresses, 0, SECRET, transport=transport)
    try:
        store = client.add_store("model", [sgd("w", (10_000,))], Options())
        store.begin(0, 0)
        push(store, np.ones(10_000), prefetch=prefetch)
        (pid,) = children(f"--index\0{1}")
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(
            errors.ServerLostError, match=f"parameter server 1 at {addresses[1]} failed on rank 0"
        ) as caught:
            for _ in range(1000):
                push(store, np.ones(10_000), prefetch=prefetch)
        assert time.monotonic() - begin < SECONDS / 2
        assert caught.value.server == 1
        with pytest.raises(
            errors.ServerLostError, match="Parameter server 1 at .* was expected to answer 'summary' on rank 0"
        ):
            store.summaries()
    finally:
        client.close()
        stop()
    assert not children("tfdist.parameter_server")


def _await_state(pid, state):
    deadline = time.monotonic() + SECONDS
    while True:
        tasks = [Path(f"/proc/{pid}/task/{task}/stat").read_text() for task in os.listdir(f"/proc/{pid}/task")]
        if all(text.rpartition(")")[2].split()[0] == state for text in tasks):
            return
        assert time.monotonic() < deadline, f"process {pid} was expected to come into state {state}"
        time.sleep(0.005)


def test_a_server_that_hangs():
    addresses, stop = spawn.start(1, world_size=1, secret=SECRET, host="127.0.0.1", timeout=SECONDS)
    client = Client(addresses, 0, SECRET, timeout=0.2)
    try:
        store = client.add_store("model", [sgd("w", (8,))], Options())
        store.begin(0, 0)
        (pid,) = children("tfdist.parameter_server")
        os.kill(pid, signal.SIGSTOP)
        _await_state(pid, "T")
        with pytest.raises(errors.CollectiveTimeoutError, match="it did not answer within timeout 0.2 s"):
            push(store, np.ones(8))
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(errors.ServerLostError, match="its connection is closed"):
            push(store, np.ones(8))  # the late answer must not pass for this one's
    finally:
        client.close()
        stop()


def test_a_server_ends_with_the_process_that_started_it():
    script = (
        "from tfdist.parameter_server import spawn; import os, signal, threading\n"
        "started = []\n"
        "start = lambda: started.append(spawn.start(1, world_size=1, secret=b's', host='127.0.0.1', timeout=9))\n"
        "thread = threading.Thread(target=start); thread.start(); thread.join()\n"  # nor does it end with the thread
        "import socket; socket.create_connection(started[0][0][0].split(':')).close()\n"
        "print('up', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    reader, writer = os.pipe()  # the server inherits it: it reads as ended when nobody is left
    try:
        process = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=60,
                                 env={**os.environ, "PYTHONPATH": os.getcwd()})  # fmt: skip
        assert process.stdout == b"up\n"  # and the pipe is closed: the server, which writes to it too, has ended
        assert process.returncode == -signal.SIGKILL
    finally:
        os.close(reader)
        os.close(writer)


def test_a_server_that_cannot_start(monkeypatch):
    with pytest.raises(
        errors.RendezvousError, match="Parameter server 0 was expected to start. Received: it ended at once"
    ):
        spawn.start(1, world_size=1, secret=SECRET, host="203.0.113.1", timeout=SECONDS)


def test_connections_that_have_ended_are_forgotten():
    with untouched() as (running, _):
        address, before = running.servers[0].address, len(os.listdir("/proc/self/fd"))
        for _ in range(30):
            Client([address], 0, SECRET).close()
        deadline = time.monotonic() + SECONDS
        while len(os.listdir("/proc/self/fd")) > before + 4 and time.monotonic() < deadline:
            Client([address], 0, SECRET).close()  # each new one clears away those before
        assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_what_the_launcher_prints_can_be_read():
    with job(2, 2) as running:
        stores = running.stores(MODEL)
        for store in (*stores, stores[0]):
            push(store, np.ones(N), None)
        texts = [json.dumps({"server": i, **server.summary()}).encode() for i, server in enumerate(running.servers)]
    servers = summary.parse(texts)
    assert [server["updates"] for server in servers] == [3, 3]
    assert servers[0]["rows"][0].pushes == 2 and servers[0]["rows"][0].seconds > 0
    assert "server 0: 3 updates" in summary.render(servers, 1.0)
