"""A parameter server: listens, checks who comes, and lets the native core serve them.

A worker opens three connections. On the *control* connection it sends frames of JSON (`tfdist.cluster.frames`): which tensors
there are, which rule updates them, where its window of shared memory is. The other two go to the native core
(native/parameter_server/protocol.h), which moves gradients and parameters without Python.
"""

import contextlib
import json
import os
import socket
import threading
import time
import zlib

from absl import logging

from tfdist.cluster.address import format_address
from tfdist.cluster.frames import ConnectionClosedError, FrameError, encode, receive_frame, send_all, shut_down
from tfdist.cluster.handshake import authenticate, check_secret
from tfdist.comm.shared_memory import host_identity, open_shared
from tfdist.errors import AuthenticationError, TfdistError
from tfdist.parameter_server import library
from tfdist.parameter_server.store import Store, total

_HANDSHAKE_SECONDS = 10.0
_REPLY_SECONDS = 30.0
_DECLARATION_BYTES_AT_MOST = 1 << 28


class ParameterServer:
    """Serves the workers of one job until it is closed.

    Args:
      num_workers: int.
      secret: bytes, the job's secret.
      host, port: where to listen; port 0 takes a free one.
      timeout: float seconds that a worker waits here for others.
    """

    def __init__(self, num_workers, secret, *, host="127.0.0.1", port=0, timeout=600.0):
        check_secret(secret)
        self._num_workers = num_workers
        self._secret = secret
        self._lock = threading.Lock()  # guards the next two
        self._stores = {}
        self._controls = []
        self._native = library.core().tfdist_server_create(timeout)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.bind((host, port))
        self._listener.listen(1024)
        self.address = format_address(host, self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept, name="tfdist-server", daemon=True)
        self._acceptor.start()

    def summary(self):
        """Returns what the server has done for all stores together, for JSON; `tfdist.launch.summary` describes it."""
        with self._lock:
            stores = list(self._stores.values())
        return {"parameters_bytes": sum(s.num_bytes for s in stores), **total([s.summary() for s in stores])}

    def close(self):
        """Ends all connections."""
        shut_down(self._listener)
        self._acceptor.join(5.0)
        with self._lock:
            controls, self._controls = self._controls, []
            native, self._native = self._native, None
        for control in controls:
            shut_down(control)
        if native is not None:
            library.core().tfdist_server_release(native)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._welcome, args=(connection, peer), daemon=True).start()

    def _welcome(self, connection, peer):
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            identity = authenticate(connection, self._secret, initiator=False, timeout=_HANDSHAKE_SECONDS)
            kind, rank = json.loads(identity)
            if not (kind in ("control", "data") and isinstance(rank, int) and 0 <= rank < self._num_workers):
                raise ValueError(f"{kind!r} of worker {rank!r} of {self._num_workers}")
        except (AuthenticationError, ValueError, TypeError) as error:
            logging.warning("parameter server: turned away %s: %s", format_address(*peer[:2]), error)
            connection.close()
            return
        if kind == "data":
            self._hand_over(connection, rank)
        else:
            with contextlib.closing(connection):
                self._answer_all(connection, rank)

    def _hand_over(self, connection, rank):
        with self._lock:
            if self._native is None:
                return connection.close()
            library.core().tfdist_server_serve(self._native, connection.detach(), rank)

    def _answer_all(self, connection, rank):
        with self._lock:
            self._controls.append(connection)
        try:
            while True:
                header, value = receive_frame(connection)
                send_all(connection, encode(*self._answer(header, value, rank)), time.monotonic() + _REPLY_SECONDS)
        except (ConnectionClosedError, OSError):
            pass
        except FrameError as error:
            logging.warning("parameter server: worker %d sent what is no request: %s", rank, error)
        finally:
            with self._lock:
                if connection in self._controls:
                    self._controls.remove(connection)

    def _answer(self, header, value, rank):
        try:
            with self._lock:
                if header.get("op") == "declare":
                    return self._declare(header, value, rank), b""
                store = self._stores[header["store"]]
                if header["op"] == "window":
                    return {"shared": self._open_window(store, header["window"], rank)}, b""
            return store.answer(header, value, rank)
        except TfdistError as error:
            return {"error": type(error).__name__, "text": str(error)}, b""
        except (
            Exception
        ) as error:  # whatever a hosted optimizer raises too: the worker is told, the others are not disturbed
            logging.exception("parameter server: %r of worker %d failed", header.get("op"), rank)
            return {"error": "TransportError", "text": f"A parameter server was expected to serve {header.get('op')!r} of "
                    f"rank {rank}. Received: {type(error).__name__}: {error}. See its output."}, b""  # fmt: skip

    def _declare(self, header, value, rank):
        """The first worker's declaration makes the store, the others' must agree with it."""
        text = zlib.decompressobj().decompress(value, _DECLARATION_BYTES_AT_MOST)
        name = header["store"]
        if name not in self._stores:
            self._stores[name] = Store(name, json.loads(text), self._native, self._num_workers, rank)
        store = self._stores[name]
        store.agree(json.loads(text), rank)
        return {"number": store.number}

    def _open_window(self, store, window, rank):
        descriptor = open_shared(window, host_identity())
        if descriptor < 0:
            return False
        try:
            enough = os.fstat(descriptor).st_size >= store.window_bytes + 4096
            code = library.core().tfdist_server_share_window(self._native, store.number, rank, descriptor)
            return enough and code == 0
        finally:
            os.close(descriptor)
