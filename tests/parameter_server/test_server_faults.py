"""What can go wrong: one clear error for the worker concerned, while the others and the stored parameters are untouched."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.parameter_server.jobs import SECONDS, SECRET, Worker, job, push, read, sgd
from tests.parameter_server.wire import (
    EXCHANGE,
    PULL_ROWS,
    PUSH,
    READ,
    ROWS,
    WRITE,
    connect,
    entry,
    is_closed,
    reply,
    request,
)
from tfdist import errors
from tfdist.cluster.address import parse_address
from tfdist.cluster.frames import encode, receive_frame, send_all
from tfdist.parameter_server import spawn
from tfdist.parameter_server.client import Client, Options, Tensor
from tfdist.parameter_server.rules import make_rule
from tfdist.parameter_server.server import ParameterServer

N = 1000
MODEL = [sgd("w", (N,)), sgd("e", (100, 4))]


@contextlib.contextmanager
def untouched(transport="shm", **options):
    """Yields a job, its stores and the native number of the store; after the fault the other worker trains as before."""
    with job(2, 1, transport) as running:
        stores = running.stores(MODEL, initial=[np.ones(N), np.ones((100, 4))], **options)
        yield running, stores
        w, e = read(stores[1])
        assert (w == 1).all() and (e == 1).all()
        result, (fresh, _) = push(stores[1], np.ones(N), None)
        assert (result.updates, fresh[0]) == (1, 0)


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
        (pid,) = _children(f"--index\0{1}")
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
    assert not _children("tfdist.parameter_server")


def test_a_server_that_hangs():
    addresses, stop = spawn.start(1, world_size=1, secret=SECRET, host="127.0.0.1", timeout=SECONDS)
    client = Client(addresses, 0, SECRET, timeout=0.2)
    try:
        store = client.add_store("model", [sgd("w", (8,))], Options())
        store.begin(0, 0)
        (pid,) = _children("tfdist.parameter_server")
        os.kill(pid, signal.SIGSTOP)
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


def _children(mark):
    """Returns the processes that this one has started whose command line has `mark`."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/cmdline", "rb") as line, open(f"/proc/{name}/stat") as stat:
                if mark.encode() in line.read() and int(stat.read().rsplit(")", 1)[1].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


# Garbage


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 64, b"tfdist/1" + b"\xff" * 64])
def test_garbage_before_the_handshake(garbage):
    with untouched() as (running, _):
        with socket.create_connection(parse_address(running.servers[0].address), timeout=SECONDS) as peer:
            peer.sendall(garbage)
            assert is_closed(peer)


@pytest.mark.parametrize(
    "identity", [b"", b"{}", b"\xff", b'["other", 0, 1]', b'["data", 5, 1]', b'["data", -1, 1]', b'["data", 0, "x"]']
)
def test_garbage_in_the_handshake(identity):
    with untouched() as (running, _):
        with connect(running.servers[0].address, SECRET, identity) as peer:
            assert is_closed(peer)


@pytest.mark.parametrize(
    "frame",
    [struct.pack(">I", 1 << 30), struct.pack(">IH", 4, 9) + b"ab", struct.pack(">IH", 4, 2) + b"[]"],
)
def test_garbage_on_a_control_connection(frame):
    with untouched() as (running, _):
        with connect(running.servers[0].address, SECRET, b'["control", 0, 1]') as peer:
            peer.sendall(frame)
            assert is_closed(peer)


@pytest.mark.parametrize(
    "header",
    [{}, {"op": "declare"}, {"op": "what", "store": "model"}, {"op": "begin", "store": "model"}, {"op": "active", "store": "no"},
     {"op": "declare", "store": "new"}, {"op": "window", "store": "model", "window": {}}],
)  # fmt: skip
def test_control_requests_that_make_no_sense(header):
    with untouched() as (running, _):
        with connect(running.servers[0].address, SECRET, b'["control", 0, 1]') as peer:
            send_all(peer, encode(header, b"xx"), time.monotonic() + SECONDS)
            answer, _ = receive_frame(peer, time.monotonic() + SECONDS)
            assert "was expected to serve" in answer["text"] and answer["error"] == "TransportError"


def test_a_window_that_is_too_small():
    """Were it mapped, the server would die of touching what is not there."""
    descriptor = os.memfd_create("tfdist")
    try:
        os.ftruncate(descriptor, 8192)
        os.pwrite(descriptor, b"n" * 16, 16)
        window = {"pid": os.getpid(), "descriptor": descriptor, "nonce": (b"n" * 16).hex()}
        with untouched(transport="tcp") as (running, (store, _)):
            from tfdist.comm.shared_memory import host_identity

            header = {"op": "window", "store": "model", "window": {**window, "host": host_identity()}}
            assert running.clients[0].ask(0, header)["shared"] is False
    finally:
        os.close(descriptor)


_ALL = [entry(0), entry(1)]  # w and e
_BYTES = 8000 + 3200  # of both, each a multiple of 64


@pytest.mark.parametrize(
    "message, text",
    [
        (b"\xff" * 88, "its header"),
        (request(EXCHANGE, _ALL, dense_bytes=_BYTES, magic=1), "its header"),
        (request(EXCHANGE, _ALL, dense_bytes=_BYTES, check=5), "its header"),
        (request(EXCHANGE, _ALL, dense_bytes=_BYTES, store=9), "its header"),
        (request(EXCHANGE, _ALL, dense_bytes=_BYTES, base=-1), "its header"),
        (request(EXCHANGE, [], num_entries=1 << 30), "its header"),
        (request(EXCHANGE, [], row_bytes=1 << 60), "its header"),
        (request(EXCHANGE, [entry(2)], dense_bytes=_BYTES), "its list of tensors"),
        (request(EXCHANGE, [entry(0, kind=9)], dense_bytes=8000), "its list of tensors"),
        (request(EXCHANGE, [entry(1, ROWS, num_rows=-1)]), "its list of tensors"),
        (request(EXCHANGE, [entry(1, ROWS, num_rows=1 << 32)], row_bytes=1 << 32), "its list of tensors"),
        (request(EXCHANGE, [entry(1, ROWS, num_rows=2)], row_bytes=16), "its list of tensors"),
        (request(READ, [entry(1, ROWS)], dense_bytes=0), "its list of tensors"),
        (request(WRITE, [entry(1, ROWS)], dense_bytes=3200), "its list of tensors"),
        (request(READ, [entry(1, flags=PUSH)], dense_bytes=3200), "its list of tensors"),
        (request(WRITE, [entry(1, flags=0)], dense_bytes=3200), "its list of tensors"),
        (request(PULL_ROWS, [entry(1, num_rows=5)]), "its list of tensors"),
        (request(EXCHANGE, _ALL, dense_bytes=1 << 50), "its size"),
        (request(EXCHANGE, _ALL, dense_bytes=64), "its size"),
        (request(EXCHANGE, _ALL, dense_bytes=_BYTES, flags=1), "its window of shared memory"),
    ],
)
def test_garbage_on_a_data_connection(message, text):
    with untouched(transport="tcp") as (running, _):
        with connect(running.servers[0].address, SECRET, b'["data", 0, 1]') as peer:
            peer.sendall(message)
            code, said = reply(peer)
            assert code != 0 and f"a request cannot be understood: {text} makes no sense" in said
            assert is_closed(peer)


@pytest.mark.parametrize("kind, values", [(EXCHANGE, 2 * 32), (PULL_ROWS, 0)])
def test_rows_out_of_range_on_the_wire(kind, values):
    rows = struct.pack("qq", 3, 100) + b"\0" * values
    flags = PUSH if kind == EXCHANGE else 0
    with untouched(transport="tcp") as (running, _):
        with connect(running.servers[0].address, SECRET, b'["data", 0, 1]') as peer:
            peer.sendall(
                request(kind, [entry(1, ROWS, flags, 2)], row_bytes=len(rows), generation=1, sequence=1) + rows
            )
            assert "row 100 of e, which has 100" in reply(peer)[1]


@pytest.mark.parametrize("kind, slot", [(READ, 5), (READ, -1), (WRITE, 1)])
def test_arrays_that_there_are_not(kind, slot):
    with untouched(transport="tcp") as (running, _):
        flags = 1 if kind == WRITE else 2
        with connect(running.servers[0].address, SECRET, b'["data", 0, 1]') as peer:
            peer.sendall(
                request(kind, [entry(0, flags=flags)], dense_bytes=8000, slot=slot)
                + b"\0" * (8000 if flags == 1 else 0)
            )
            assert f"there is no array {slot} of w" in reply(peer)[1]


def test_a_worker_that_ends_within_a_push():
    with untouched(transport="tcp") as (running, (store, _)):
        with connect(running.servers[0].address, SECRET, b'["data", 0, 1]') as peer:
            peer.sendall(request(EXCHANGE, _ALL, dense_bytes=_BYTES, generation=1, sequence=1) + b"\0" * 9000)
        with connect(running.servers[0].address, SECRET, b'["data", 0, 1]') as peer:
            peer.sendall(request(EXCHANGE, _ALL, dense_bytes=_BYTES, generation=1, sequence=1)[:100])
        assert store.summaries()[0]["updates"] == 0


def test_a_push_whose_sender_is_gone_is_applied_whole():
    """It was received whole; that nobody takes the answer must not leave half of the tensors behind."""
    tensors = [sgd("a", (300_000,)), sgd("b", (300_000,)), sgd("c", (300_000,))]
    entries, size = [entry(i) for i in range(3)], 3 * 2_400_000
    with job(2, 1, "tcp") as running:
        store = running.stores(tensors)[1]
        with connect(running.servers[0].address, SECRET, b'["data", 0, 1]') as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its end is a reset
            peer.sendall(request(EXCHANGE, entries, dense_bytes=size, generation=1, sequence=1, learning_rate=1.0))
            peer.sendall(np.ones(900_000).tobytes())
            peer.recv(64, socket.MSG_WAITALL)
        while not (read(store)[2] == -1).all():
            pass
        a, b, c = read(store)
        assert (a == -1).all() and (b == -1).all()


def test_a_push_sent_twice_counts_once():
    message = request(EXCHANGE, _ALL, dense_bytes=_BYTES, generation=1, sequence=1, learning_rate=1.0)
    payload = np.ones(N + 400).tobytes()
    with job(2, 1, "tcp") as running:
        store = running.stores(MODEL)[1]
        for _ in range(2):
            with connect(running.servers[0].address, SECRET, b'["data", 0, 1]') as peer:
                peer.sendall(message + payload)
                assert reply(peer)[0] == 0
                peer.recv(8000 + 3200, socket.MSG_WAITALL)
                while store.summaries()[0]["updates"] != 1:
                    pass
        w, e = read(store)
        assert (w == -1).all() and (e == -1).all()
        summary = store.summaries()[0]
    assert (summary["updates"], summary["workers"]["0"]["pushes"]) == (1, 1)


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
    from tfdist.launch import summary

    with job(2, 2) as running:
        stores = running.stores(MODEL)
        for store in (*stores, stores[0]):
            push(store, np.ones(N), None)
        texts = [json.dumps({"server": i, **server.summary()}).encode() for i, server in enumerate(running.servers)]
    servers = summary.parse(texts)
    assert [server["updates"] for server in servers] == [3, 3]
    assert servers[0]["rows"][0].pushes == 2 and servers[0]["rows"][0].seconds > 0
    assert "server 0: 3 updates" in summary.render(servers, 1.0)
