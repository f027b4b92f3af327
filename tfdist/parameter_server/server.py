"""A parameter server: listens, checks who comes, and lets the native core serve them.

A worker opens three connections. On the *control* connection it sends frames of JSON (`tfdist.cluster.frames`): which
tensors there are, which rule updates them, where its window of shared memory is. The other two go to the native core
(native/parameter_server/protocol.h), which moves gradients and parameters without Python.
"""

import collections
import json
import os
import socket
import threading
import time
import zlib

from absl import logging

from tfdist.cluster.address import format_address
from tfdist.cluster.frames import ConnectionClosedError, FrameError, encode, receive_frame, send_all, shut_down
from tfdist.cluster.handshake import check_secret, secure
from tfdist.cluster.waiting_room import WaitingRoom
from tfdist.comm.shared_memory import host_identity, open_shared
from tfdist.errors import AuthenticationError, TfdistError, TransportError
from tfdist.parameter_server import library, state
from tfdist.parameter_server.keeper import Keeper
from tfdist.parameter_server.listening import listen
from tfdist.parameter_server.partner import CHUNK_BYTES
from tfdist.parameter_server.store import Store

_HANDSHAKE_SECONDS = 10.0
_REPLY_SECONDS = 30.0
_JOIN_SECONDS = 5.0
_PAUSE_SECONDS = 0.1
_LOG_SECONDS = 1.0
_CONNECTIONS_AT_MOST = 8192
_HEAD_BYTES = 4096
_DECLARATION_BYTES_AT_MOST = 1 << 28


class ParameterServer:
    """Serves the workers of one job until it is closed.

    Args:
      num_workers: int.
      secret: bytes, the job's secret.
      host, port: where to listen; port 0 takes a free one.
      timeout: float seconds that a worker waits here for others.
      keeping: a `Keeping`, how the state outlives this process; None: it does not.
      listener: a listening socket, instead of host and port.
    """

    def __init__(self, num_workers, secret, *, host="127.0.0.1", port=0, timeout=600.0, keeping=None,
                 listener=None):  # fmt: skip
        check_secret(secret)
        self._num_workers = num_workers
        self._secret = secret
        self._lock = threading.Lock()  # guards the next four
        self._stores = {}
        self._connections = {}  # thread -> its connection
        self._native = None
        self._closed = False
        self._room = WaitingRoom()
        self._listener = listener or listen(host, port)
        self._native = library.core().tfdist_server_create(timeout)
        self.address = format_address(host, self._listener.getsockname()[1])
        self._keeper = Keeper(keeping, secret, self._all_stores) if keeping else None
        if self._keeper:
            self._resume()
            self._keeper.start()
        self._acceptor = threading.Thread(target=self._accept, name="tfdist-server", daemon=True)
        self._acceptor.start()

    def num_connections(self):
        """Returns how many control connections there are."""
        with self._lock:
            return len(self._connections)

    def _resume(self):
        for description, blocks, is_newest in self._keeper.found():
            given = (description["name"], description["declaration"])
            store = Store(*given, self._native, self._num_workers, description["declared_by"])
            try:
                state.load(store, blocks)
            except ValueError as error:
                raise TransportError(f"A state of this job was expected in the snapshot. Received: {error}.") from error
            keeping = self._keeper.keeping
            store.resume(keeping.offer_seconds, newest_of=keeping.incarnation if is_newest else 0)
            self._stores[store.name] = store
            logging.info("parameter server: %r goes on after %d updates", store.name, store.summary()["updates"])

    def _all_stores(self):
        with self._lock:
            return list(self._stores.values())

    def summary(self):
        """Returns what the server has done in all stores, for JSON: see `tfdist.launch.summary`, but for "server"."""
        with self._lock:
            stores = list(self._stores.values())
            summaries = [store.summary() for store in stores]
        workers = {}
        for summary in summaries:
            for rank, record in summary["workers"].items():
                workers[rank] = _add(workers[rank], record) if rank in workers else record
        return {
            "updates": sum(summary["updates"] for summary in summaries),
            "parameters_bytes": sum(store.num_bytes for store in stores),
            "workers": workers,
        }

    def close(self, *, clear=True):
        """Ends all connections; `clear` removes the snapshots, so that nobody can go on from them."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            connections = dict(self._connections)
        shut_down(self._listener)
        for connection in connections.values():
            shut_down(connection)
        for thread in [self._acceptor, *connections]:
            thread.join(_JOIN_SECONDS)
        if self._keeper:
            self._keeper.stop(clear=clear)
        with self._lock:
            native, self._native = self._native, None
            self._stores.clear()
        library.core().tfdist_server_release(native)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        while True:
            try:
                self._room.pause()
                connection, peer = self._listener.accept()
            except OSError as error:
                if self._closed:
                    return
                logging.warning("parameter server: a connection could not be accepted: %s", error)
                time.sleep(_PAUSE_SECONDS)  # too many descriptors: some will be closed
                continue
            thread = threading.Thread(target=self._welcome, args=(connection, peer), daemon=True)
            with self._lock:
                if self._closed:
                    return connection.close()
                if len(self._connections) >= _CONNECTIONS_AT_MOST:
                    connection.close()
                    continue
                self._connections[thread] = connection
                thread.start()

    def _welcome(self, connection, peer):
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._room.place(connection):
                connection, identity = secure(connection, self._secret, initiator=False, timeout=_HANDSHAKE_SECONDS)
            with self._lock:
                self._connections[threading.current_thread()] = connection
            kind, rank, client = _understood(identity, self._num_workers)
            if kind == "data":
                self._hand_over(connection, rank, client)
            else:
                self._answer_all(connection, rank, client)
        except (AuthenticationError, ValueError, TypeError, OSError) as error:
            text = "parameter server: turned away %s: %s"
            logging.log_every_n_seconds(logging.WARNING, text, _LOG_SECONDS, format_address(*peer[:2]), error)
        finally:
            connection.close()
            with self._lock:
                self._connections.pop(threading.current_thread(), None)

    def _hand_over(self, connection, rank, client):
        with self._lock:
            if not self._closed:
                library.core().tfdist_server_serve(self._native, connection.detach(), rank, client)

    def _answer_all(self, connection, rank, client):
        try:
            kept = {}  # a state that is being fetched
            while True:
                header, value = receive_frame(connection)
                answer = encode(*self._answer(header, value, rank, client, kept))
                send_all(connection, answer, time.monotonic() + _REPLY_SECONDS)
        except (ConnectionClosedError, OSError):
            pass
        except FrameError as error:
            logging.warning("parameter server: worker %d sent what is no request: %s", rank, error)

    def _answer(self, header, value, rank, client, kept):
        try:
            with self._lock:
                if self._closed:
                    raise TransportError("The parameter server was expected to run. Received: it is stopping.")
                if header.get("op") == "declare":
                    return self._declare(header, value, rank, client), b""
                store = self._stores[header["store"]]
                if header["op"] == "window":
                    return {"shared": self._open_window(store, header["window"], rank)}, b""
            if header["op"] == "state":
                kept["blocks"] = [bytes(block) for block in state.save(store)]
                return {}, json.dumps([len(block) for block in kept["blocks"]]).encode()
            if header["op"] == "state bytes":
                kept["bytes"] = kept.get("bytes") or b"".join(kept.pop("blocks"))
                return {}, kept["bytes"][header["begin"] : header["begin"] + CHUNK_BYTES]
            answer = store.answer(header, value, rank, client)
            self._keep_up(header["op"])
            return answer
        except TfdistError as error:
            return {"error": type(error).__name__, "text": str(error)}, b""
        except Exception as error:  # of a hosted optimizer, too: this worker is told, the others are not disturbed
            logging.exception("parameter server: %r of worker %d failed", header.get("op"), rank)
            text = f"A parameter server was expected to serve {header.get('op')!r} of rank {rank}. Received: "
            return {"error": "TransportError", "text": f"{text}{type(error).__name__}: {error}. See its output."}, b""

    def _keep_up(self, operation):
        """New parameters are in a snapshot before anybody is told of them; who takes part, soon."""
        if self._keeper and operation == "begin":
            self._keeper.write()
        elif self._keeper and operation == "active":
            self._keeper.write_soon()

    def _declare(self, header, value, rank, client):
        """The first worker's declaration makes the store, the others' must agree with it."""
        text = zlib.decompressobj().decompress(value, _DECLARATION_BYTES_AT_MOST)
        name = header["store"]
        if name not in self._stores:
            self._stores[name] = Store(name, json.loads(text), self._native, self._num_workers, rank)
        store = self._stores[name]
        store.agree(json.loads(text), rank)
        store.join(rank, client)
        return {"number": store.number, "sequence": store.sequence(rank), "num_workers": self._num_workers}

    def _open_window(self, store, window, rank):
        descriptor = open_shared(window, host_identity())
        if descriptor < 0:
            return False
        try:
            if os.fstat(descriptor).st_size < store.window_bytes + _HEAD_BYTES:
                return False
            return library.core().tfdist_server_share_window(self._native, store.number, rank, descriptor) == 0
        finally:
            os.close(descriptor)


def _understood(identity, num_workers):
    kind, rank, client = json.loads(identity)
    if not (
        kind in ("control", "data") and isinstance(rank, int) and 0 <= rank < num_workers and isinstance(client, int)
    ):
        raise ValueError(f"connection {kind!r} of worker {rank!r}, and there are {num_workers} workers")
    return kind, rank, client


def _add(one, other):
    """Joins what a worker did in two stores; bytes are counted for all of them together."""
    staleness = collections.Counter(one["staleness"])
    staleness.update(other["staleness"])
    added = {key: one[key] + other[key] for key in ("pushes", "dropped", "waited_seconds")}
    return {**one, **added, "seconds": max(one["seconds"], other["seconds"]), "staleness": dict(staleness)}
