"""The side of the store that asks."""

import json
import socket
import threading
import time

from tfdist.cluster.address import parse_address
from tfdist.cluster.frames import (
    MAX_KEY_BYTES,
    MAX_WAIT_SECONDS,
    FrameError,
    encode,
    receive_frame,
    send_all,
    shut_down,
)
from tfdist.cluster.handshake import check_secret, secure
from tfdist.errors import AuthenticationError, ConfigurationError, RendezvousError, TransportError

_REPLY_SECONDS = 30.0


class StoreTimeoutError(RendezvousError, TimeoutError):
    """Nobody set the key in time."""


class StoreClient:
    """A connection to the store.

    Thread safe, but requests go one after the other: a `get` that waits holds up the other threads, so give a
    thread that waits a client of its own. After a TransportError the client is unusable.

    Args:
      address: "host:port".
      secret: bytes, the job's secret.
      timeout: float seconds to reach the store (it may start after its clients), and the default for `get`.

    Raises:
      RendezvousError: nobody answered at the address in time.
      AuthenticationError: somebody did, and does not know the secret.
    """

    def __init__(self, address, secret, *, timeout=30.0):
        check_secret(secret)
        self.address = address
        self._timeout = timeout
        self._lock = threading.Lock()  # one request and its reply at a time
        deadline = time.monotonic() + timeout
        self._socket = _connect(address, timeout)
        try:
            remaining = max(deadline - time.monotonic(), 0.1)
            self._socket, _ = secure(self._socket, secret, initiator=True, timeout=remaining)
        except AuthenticationError as error:
            raise AuthenticationError(f"Connecting to the store at {address} failed. {error}") from error

    def set(self, key, value):
        """Stores bytes under a key, and wakes all who wait for it. Key and value share one frame of 1 MiB."""
        self._request({"op": "set", "key": key}, bytes(value))

    def get(self, key, timeout=None):
        """Waits, without polling, until the key is set.

        Args:
          key: str, at most 1 KiB.
          timeout: float seconds; the client's own by default.

        Returns:
          The value, bytes.

        Raises:
          StoreTimeoutError: nobody set it in time (a TimeoutError and a RendezvousError).
          TransportError: the store is gone.
        """
        timeout = min(max(0.0, self._timeout if timeout is None else timeout), MAX_WAIT_SECONDS)
        reply, value = self._request({"op": "get", "key": key, "timeout": timeout}, wait_seconds=timeout)
        if not reply.get("found"):
            raise StoreTimeoutError(
                f"{key!r} was expected in the store at {self.address}. Received: nothing within timeout={timeout:g} s. "
                "See whether the process that sets it has started."
            )
        return value

    def try_get(self, key):
        """Returns the value, or None where the key is not set. Does not wait."""
        reply, value = self._request({"op": "get", "key": key, "timeout": 0})
        return value if reply.get("found") else None

    def keys(self, prefix=""):
        """Returns the sorted list of the keys that start with `prefix`."""
        return [self._understood(key, str) for key in self._listing("keys", prefix, list)]

    def add(self, key, amount):
        """Adds an int to a counter (0 at first) in one indivisible step, and returns the new value."""
        return self._understood(self._request({"op": "add", "key": key, "amount": int(amount)})[0].get("total"), int)

    def claim(self, key, value):
        """Stores bytes under a key unless somebody was first; returns what is there now."""
        return self._request({"op": "claim", "key": key}, bytes(value))[1]

    def take(self, key, record, value, most):
        """Raises a counter by one and records who did, in one indivisible step.

        Args:
          key: str, the counter.
          record: str, another key.
          value: bytes to store there, each `#` replaced by the new total, in decimal.
          most: int >= 0; where the new total is more, nothing is recorded.

        Returns:
          The new total, an int from 1.
        """
        header = {"op": "take", "key": key, "record": record, "most": int(most)}
        return self._understood(self._request(header, bytes(value))[0].get("total"), int)

    def items(self, prefix):
        """Returns a dict of the keys that start with `prefix` and their values, as they were at one moment."""
        listing = self._listing("items", prefix, dict)
        return {key: self._understood(value, str).encode("latin-1") for key, value in listing.items()}

    def delete(self, key):
        """Forgets a key. Returns whether it was set."""
        return self._understood(self._request({"op": "delete", "key": key})[0].get("found"), bool)

    def rejected(self):
        """Returns `(count, last_address)` of the connections the store turned away: a hint at a wrong secret."""
        reply, _ = self._request({"op": "rejected"})
        return self._understood(reply.get("count"), int), self._understood(reply.get("last"), (str, type(None)))

    def close(self):
        """Closes the connection. Calling it again does nothing."""
        shut_down(self._socket)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _listing(self, operation, prefix, kind):
        """Asks for JSON of a kind."""
        _, listing = self._request({"op": operation, "key": prefix})
        try:
            found = json.loads(listing)
        except (ValueError, RecursionError):
            found = None
        return self._understood(found, kind)

    def _understood(self, value, kind):
        if not isinstance(value, kind):
            self.close()
            raise TransportError(
                f"The store was expected to answer in the way of this version. Received: type={type(value).__name__} from "
                f"{self.address}. Run the same version of tfdist on all hosts."
            )
        return value

    def _request(self, header, value=b"", wait_seconds=0.0):
        frame = encode(header, value)
        if len(header.get("key", "").encode()) > MAX_KEY_BYTES:
            raise ConfigurationError(
                f"key is expected to have at most {MAX_KEY_BYTES} bytes. Received: {len(header['key'])} characters. "
                "Use a shorter one."
            )
        with self._lock:
            deadline = time.monotonic() + _REPLY_SECONDS + wait_seconds
            try:
                send_all(self._socket, frame, deadline)
                reply, value = receive_frame(self._socket, deadline)
            except (OSError, FrameError) as error:
                self.close()
                raise TransportError(
                    f"The store was expected to answer {header['op']!r}. Received: {error} from {self.address}. "
                    "The process that serves it (rank 0 or the launcher) has probably ended: see its output."
                ) from error
            except BaseException:  # Ctrl-C: the reply would be taken for that of the next request
                self.close()
                raise
        if "error" in reply:
            raise ConfigurationError(reply["error"])
        return reply, value


def _connect(address, timeout):
    host, port = parse_address(address)
    deadline, pause = time.monotonic() + timeout, 0.02
    while True:
        remaining = deadline - time.monotonic()
        try:
            connection = socket.create_connection((host, port), max(remaining, 0.01))
            if connection.getsockname() == connection.getpeername():
                # A port of the ephemeral range where nobody listens yet: TCP lets a socket connect to itself.
                connection.close()
                raise ConnectionRefusedError("nobody listens there yet")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return connection
        except OSError as error:
            if deadline - time.monotonic() <= pause:
                raise RendezvousError(
                    f"The store was expected to answer at {address}. Received: {error}, tried for timeout={timeout:g} s. "
                    "See whether the process that serves it (rank 0 or the launcher) runs, and whether a firewall is between."
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
