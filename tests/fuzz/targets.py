"""What hostile bytes do to the Python side of every connection: fuzz targets, one function of an input each.

A target passes where it returns: it raises on anything but a clean refusal. Each is made by a context manager, which
holds what lives longer than an input.
"""

import contextlib
import socket
import struct
import threading
import time

from tests.fuzz.tampering import TamperingSocket
from tfdist.cluster import frames
from tfdist.cluster.address import parse_address
from tfdist.cluster.handshake import authenticate
from tfdist.cluster.store import StoreClient, StoreServer
from tfdist.errors import AuthenticationError, TfdistError

SECRET = b"a secret of the fuzzer"
_SECONDS = 5.0  # that anything may take
_HELLO = b"tfdist/1" + bytes(32) + b"\0\x02me"


def _frame(header, value=b""):
    return struct.pack(">IH", 2 + len(header) + len(value), len(header)) + header + value


def _requests(*headers):
    return b"".join(_frame(header, b"value") for header in headers)


@contextlib.contextmanager
def handshake():
    """A stranger speaks to either side: the first byte of an input chooses the side, the others are what he says."""

    def run(data):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data[1:])
            theirs.shutdown(socket.SHUT_WR)
            try:
                authenticate(ours, SECRET, initiator=bool(data[:1] > b"\x7f"), timeout=_SECONDS)
            except AuthenticationError as error:
                assert SECRET.decode() not in str(error)
            else:
                raise AssertionError("a stranger was let in")

    yield run


@contextlib.contextmanager
def tampered_handshake():
    """Somebody between two honest sides changes bytes: of an input three are a direction, a place, and what to add."""

    def run(data):
        changes = {(d & 1, p % 110): x for d, p, x in zip(data[0::3], data[1::3], data[2::3]) if x}
        left, right = (TamperingSocket(*pair, changes) for pair in enumerate(socket.socketpair()))
        passed, patience = [], 0.05 if changes else _SECONDS

        def side(sock, initiator):
            with contextlib.suppress(AuthenticationError):
                passed.append(authenticate(sock, SECRET, initiator=initiator, identity=b"me", timeout=patience))
            sock.close()

        other = threading.Thread(target=side, args=(right, False))
        other.start()
        side(left, True)
        other.join(_SECONDS)
        assert not other.is_alive()
        if left.changed or right.changed:
            # What is changed in the last message, after the initiator has proven itself, only the initiator can see.
            assert len(passed) < 2, "both sides trust a connection that was tampered with"
        elif not changes:
            assert passed == [b"me", b"me"]

    yield run


@contextlib.contextmanager
def frame():
    """A frame of the store, as `receive_frame` reads it."""

    def run(data):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            with contextlib.suppress(frames.FrameError):
                while True:
                    header, value = frames.receive_frame(ours, time.monotonic() + _SECONDS)
                    assert isinstance(header, dict) and isinstance(value, bytes)

    yield run


@contextlib.contextmanager
def store():
    """A worker of the job sends the store what it likes; the others are served as before."""
    with StoreServer(secret=SECRET) as server, StoreClient(server.address, SECRET) as honest:
        honest.set("canary", b"alive")

        def run(data):
            with socket.create_connection(parse_address(server.address), _SECONDS) as peer:
                authenticate(peer, SECRET, initiator=True, timeout=_SECONDS)
                _say_and_drain(peer, data)
            assert honest.get("canary", _SECONDS) == b"alive"
            for key in honest.keys()[64:]:
                honest.delete(key)
            honest.set("canary", b"alive")

        yield run


@contextlib.contextmanager
def store_client():
    """A store answers a client what it likes."""
    calls = (
        lambda client: client.get("k", 0),
        lambda client: client.try_get("k"),
        lambda client: client.keys(),
        lambda client: client.add("k", 1),
        lambda client: client.delete("k"),
        lambda client: client.rejected(),
    )

    def run(data):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=_serve_once, args=(listener, data[1:]))
            thread.start()
            with contextlib.suppress(TfdistError):
                with StoreClient(f"127.0.0.1:{listener.getsockname()[1]}", SECRET, timeout=_SECONDS) as client:
                    calls[(data[0] if data else 0) % len(calls)](client)
            thread.join(_SECONDS)
            assert not thread.is_alive()

    yield run


@contextlib.contextmanager
def control():
    """A worker sends a parameter server control frames that nobody else would; the others are served as before.

    The first byte of an input chooses whether it is what the worker says of itself, or frames.
    """
    from tfdist.parameter_server.server import ParameterServer

    with ParameterServer(2, SECRET, timeout=0.2) as server:

        def connect(identity):
            peer = socket.create_connection(parse_address(server.address), _SECONDS)
            authenticate(peer, SECRET, initiator=True, identity=identity, timeout=_SECONDS)
            return peer

        def run(data):
            is_identity = data[:1] == b"I"
            with connect(data[1:1000] if is_identity else b'["control", 0, 1]') as peer:
                _say_and_drain(peer, b"" if is_identity else data[1:])
            with connect(b'["control", 1, 2]') as peer:
                frames.send_all(peer, frames.encode({"op": "what", "store": "no"}), time.monotonic() + _SECONDS)
                assert "error" in frames.receive_frame(peer, time.monotonic() + _SECONDS)[0]

        yield run


def _say_and_drain(peer, data):
    with contextlib.suppress(OSError):
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(1 << 16):
            pass


def _serve_once(listener, data):
    connection, _ = listener.accept()
    with connection, contextlib.suppress(TfdistError, OSError):
        authenticate(connection, SECRET, initiator=False, timeout=_SECONDS)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


# Target -> (how to make it, inputs that make sense, words that mean something in them).
TARGETS = {
    "handshake": (
        handshake,
        [b"\0" + _HELLO + bytes(32), b"\xff" + _HELLO + b"\x01" + bytes(32), b"\xff" + _HELLO + b"\0", b"\0GET / HTTP/1.1\r\n\r\n"],
        [b"tfdist/1", b"\xff\xff", b"\x01"],
    ),
    "tampered_handshake": (tampered_handshake, [b"", b"\0\0\1", b"\0\x2c\1", b"\1\x50\1", b"\0\x29\3\1\x2c\7"], []),
    "frame": (
        frame,
        [_frame(b"{}"), _frame(b'{"op":"set","key":"k"}', b"v") * 3, struct.pack(">I", 1 << 30), _frame(b"[]")],
        [b"{", b"[" * 200, b'"', b"\xff\xff\xff\xff", b"NaN", b"1e999"],
    ),
    "store": (
        store,
        [_requests(b'{"op":"set","key":"a"}', b'{"op":"get","key":"a","timeout":0}', b'{"op":"keys","key":""}'),
         _requests(b'{"op":"add","key":"n","amount":5}', b'{"op":"delete","key":"n"}', b'{"op":"rejected"}'),
         _requests(b'{"op":"get","key":"b","timeout":0.01}', b'{"op":"add","key":"a","amount":1e300}')],
        [b'"op":', b'"timeout":', b"null", b"true", b"NaN", b"-1", b"1e999", b"[]", b"\\ud800", b'"k":{}', b"9" * 400],
    ),
    "store_client": (
        store_client,
        [bytes([call]) + _frame(header, value)
         for call in range(6)
         for header, value in ((b"{}", b""), (b'{"found":true}', b"v"), (b'{"total":3}', b""), (b'{"error":"x"}', b""),
                               (b"{}", b'["a","b"]'), (b'{"count":1,"last":null}', b""))],
        [b'"found":', b"null", b"[]", b'"error":', b"5"],
    ),
    "control": (
        control,
        [b'I["control", 0, 1]', b'I["data", 1, 5]',
         b"F" + _requests(b'{"op":"begin","store":"m","generation":1,"updates":0,"scalars":[]}', b'{"op":"summary","store":"m"}'),
         b"F" + _requests(b'{"op":"window","store":"m","window":{"host":"h","pid":1,"descriptor":3,"nonce":"00"}}'),
         b"F" + _requests(b'{"op":"declare","store":"m"}', b'{"op":"active","store":"m","active":true}'),
         b"F" + _requests(b'{"op":"read variable","store":"m","index":0,"begin":0,"count":1}')],
        [b'"op":', b'"store":', b"null", b"[]", b"-1", b"1e999", b"{}", b"9" * 30, b"\\u0000"],
    ),
}  # fmt: skip
