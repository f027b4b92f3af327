"""Garbage on the port, before and after the handshake: whoever sends it is cut off, and nobody else notices."""

import os
import socket
import struct
import time

import numpy as np
import pytest

from tests.parameter_server.jobs import MODEL, SECONDS, SECRET, job, read, sgd, untouched
from tests.parameter_server.jobs import SIZE as N
from tests.parameter_server.wire import (
    EXCHANGE,
    PULL,
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
from tfdist.cluster.address import parse_address
from tfdist.cluster.frames import encode, receive_frame, send_all
from tfdist.comm.shared_memory import host_identity

pytestmark = pytest.mark.usefixtures("nothing_left")


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
    [{}, {"op": "declare"}, {"op": "what", "store": "model"}, {"op": "begin", "store": "model"},
     {"op": "active", "store": "no"}, {"op": "declare", "store": "new"}, {"op": "window", "store": "model", "window": {}}],
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
        (request(READ, [entry(1, ROWS, PULL)], dense_bytes=3200), "its list of tensors"),
        (request(WRITE, [entry(1, ROWS, PUSH)]), "its list of tensors"),
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
