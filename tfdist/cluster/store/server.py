"""The side of the store that holds the values."""

import json
import selectors
import socket
import threading
import time

from absl import logging

from tfdist.cluster.address import format_address
from tfdist.cluster.frames import (
    MAX_FRAME_BYTES,
    MAX_KEY_BYTES,
    MAX_WAIT_SECONDS,
    ConnectionClosedError,
    FrameError,
    encode,
    is_closed,
    receive_frame,
    send_all,
    shut_down,
)
from tfdist.cluster.handshake import check_secret, secure
from tfdist.cluster.waiting_room import WaitingRoom
from tfdist.errors import AuthenticationError, RendezvousError

_HANDSHAKE_SECONDS = 10.0
_REPLY_SECONDS = 30.0
_CONNECTIONS_AT_MOST = 8192
_LOG_SECONDS = 1.0
_LOOK_SECONDS = 5.0  # whether a client that waits is still there: one that was killed would keep its thread


class StoreServer:
    """Serves the store from threads of this process until `close()`.

    Thread safe. A connection that does not prove the secret within 10 s, or sends what is not a request, is closed
    and counted; the others are not disturbed. At most 128 may be unproven at a time (`WaitingRoom`), 8192 be open.

    Args:
      host: the address to listen on. Keep the default unless other hosts take part.
      port: the port, 0 for a free one.
      secret: bytes, the job's secret, at least one byte.

    Raises:
      RendezvousError: it cannot listen there.
    """

    def __init__(self, host="127.0.0.1", port=0, *, secret):
        check_secret(secret)
        self._secret = bytes(secret)
        self._changed = threading.Condition()  # guards everything below
        self._values = {}
        self._connections = {}  # thread -> its socket
        self._rejected = (0, None)
        self._closed = False
        self._room = WaitingRoom()
        self._listener = _listen(host, port)
        self._alarm, self._alarmed = socket.socketpair()  # wakes the acceptor, on every system
        self.address = format_address(host, self._listener.getsockname()[1])
        self._acceptor = threading.Thread(target=self._accept, name="tfdist-store", daemon=True)
        self._acceptor.start()

    def rejected(self):
        """Returns `(count, last_address)` of the connections that were turned away; `(0, None)` at first."""
        with self._changed:
            return self._rejected

    def items(self, prefix=""):
        """Returns a dict of the keys that start with `prefix` and their values, without a connection."""
        with self._changed:
            return {key: value for key, value in self._values.items() if key.startswith(prefix)}

    def set(self, key, value):
        """Stores bytes under a key, without a connection, and wakes all who wait for it."""
        self._answer({"op": "set", "key": key}, bytes(value))

    def close(self):
        """Closes every connection and ends the threads. Blocked `get` calls of clients raise TransportError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            connections = dict(self._connections)
        self._alarm.close()
        self._acceptor.join(timeout=5.0)
        for connection in connections.values():
            shut_down(connection)
        for thread in connections:
            thread.join(timeout=5.0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        with self._listener, self._alarmed, selectors.DefaultSelector() as selector:
            self._listener.setblocking(False)
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._alarmed, selectors.EVENT_READ)
            while not self._closed:
                selector.select()
                self._room.pause()
                try:
                    self._welcome(*self._listener.accept())
                except BlockingIOError:
                    pass
                except OSError as error:  # out of file descriptors, or the peer is gone: the others still want us
                    logging.warning("tfdist store: accept failed: %s", error)
                    time.sleep(0.05)

    def _welcome(self, connection, peer):
        thread = threading.Thread(target=self._serve, args=(connection, peer), name="tfdist-store", daemon=True)
        try:
            with self._changed:
                if self._closed or len(self._connections) >= _CONNECTIONS_AT_MOST:
                    raise RuntimeError(f"{len(self._connections)} connections are open")
                thread.start()
                self._connections[thread] = connection
        except RuntimeError as error:  # ours, or no thread to be had
            connection.close()
            self._turn_away(peer, error)

    def _serve(self, connection, peer):
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            with self._room.place(connection):
                connection, _ = secure(connection, self._secret, initiator=False, timeout=_HANDSHAKE_SECONDS)
            with self._changed:
                self._connections[threading.current_thread()] = connection
            while not self._closed:
                header, value = receive_frame(connection)
                reply = encode(*self._answer(header, value, connection))
                send_all(connection, reply, time.monotonic() + _REPLY_SECONDS)
        except ConnectionClosedError:
            pass
        except (AuthenticationError, FrameError) as error:
            if not self._closed:
                self._turn_away(peer, error)
        except OSError as error:
            logging.debug("tfdist store: lost %s: %s", format_address(*peer[:2]), error)
        finally:
            with self._changed:
                self._connections.pop(threading.current_thread(), None)
            connection.close()

    def _turn_away(self, peer, why):
        address = format_address(*peer[:2])
        with self._changed:
            self._rejected = (self._rejected[0] + 1, address)
        text = "tfdist store: turned away %s (%d so far): %s"
        logging.log_every_n_seconds(logging.WARNING, text, _LOG_SECONDS, address, self._rejected[0], why)

    def _answer(self, header, value, connection=None):
        """Returns the reply's header and value; raises FrameError where the request is none."""
        operation, key = header.get("op"), header.get("key", "")
        if not isinstance(key, str) or len(key.encode(errors="replace")) > MAX_KEY_BYTES:
            raise FrameError("a key that is not a string, or too long")
        with self._changed:
            if operation == "set":
                self._values[key] = value
                self._changed.notify_all()
            elif operation == "get":
                wait = _number(header.get("timeout"), 0, MAX_WAIT_SECONDS)
                deadline = time.monotonic() + wait
                while not self._changed.wait_for(
                    lambda: self._closed or key in self._values, min(deadline - time.monotonic(), _LOOK_SECONDS)
                ):
                    if time.monotonic() >= deadline:
                        break
                    if is_closed(connection):
                        raise ConnectionClosedError("who asked is gone")
                if self._closed:
                    raise ConnectionClosedError("the store closes")
                return {"found": key in self._values}, self._values.get(key, b"")
            elif operation == "keys":
                return _key_list(name for name in self._values if name.startswith(key))
            elif operation == "add":
                return self._add(key, int(_number(header.get("amount"), -(2**62), 2**62)))
            elif operation == "claim":
                claimed = self._values.setdefault(key, value)
                self._changed.notify_all()
                return {}, claimed
            elif operation == "take":
                return self._take(key, header.get("record"), _number(header.get("most"), 0, 2**62), value)
            elif operation == "items":
                return _item_list((name, self._values[name]) for name in self._values if name.startswith(key))
            elif operation == "delete":
                return {"found": self._values.pop(key, None) is not None}, b""
            elif operation == "rejected":
                return {"count": self._rejected[0], "last": self._rejected[1]}, b""
            else:
                raise FrameError("a request of an unknown kind")
        return {}, b""

    def _add(self, key, amount):
        try:
            total = int(self._values.get(key, b"0")) + amount
        except ValueError:
            return {"error": f"A counter is expected to hold an integer. Received: key={key!r}, set to something else. "
                             "Use a key of its own for the counter."}, b""  # fmt: skip
        self._values[key] = str(total).encode()
        self._changed.notify_all()
        return {"total": total}, b""

    def _take(self, key, record, most, value):
        """Raises a counter by one; where that makes at most `most`, stores `value` under `record` in the same step."""
        if not isinstance(record, str) or len(record.encode(errors="replace")) > MAX_KEY_BYTES:
            raise FrameError("a record that is not a string, or too long")
        reply, rest = self._add(key, 1)
        if reply.get("total", most + 1) <= most:
            self._values[record] = value.replace(b"#", str(reply["total"]).encode())
        return reply, rest


def _listen(host, port):
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
        return listener
    except OSError as error:
        raise RendezvousError(
            f"The store was expected to listen at {format_address(host, port)}. Received: {error}. "
            "Choose an address of this host and a free port (TFDIST_PORT where the environment gives none)."
        ) from error


def _number(value, low, high):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise FrameError("a number that is missing or out of range")
    return value


def _key_list(names):
    return _listing(sorted(names))


def _item_list(items):
    return _listing({name: value.decode("latin-1") for name, value in sorted(items)})


def _listing(content):
    listing = json.dumps(content).encode()
    if len(listing) > MAX_FRAME_BYTES - 1024:
        return {"error": f"A list of keys is expected to fit into a frame. Received: length={len(listing)} bytes. "
                         "Ask for a longer prefix."}, b""  # fmt: skip
    return {}, listing
