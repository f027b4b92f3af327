"""A worker's control connection with one server: one request, one answer, in turn."""

import threading
import time

from tfdist import errors
from tfdist.cluster.frames import FrameError, encode, is_closed, receive_frame, send_all, shut_down

_REPLY_SECONDS = 60.0


class Control:
    """Thread safe.

    Args:
      connection: an authenticated socket, owned from here on.
      server, address, rank: for messages.
    """

    def __init__(self, connection, server, address, rank):
        self._connection = connection
        self._server, self._address, self._rank = server, address, rank
        self._lock = threading.Lock()  # one request at a time

    def ask(self, header, value=b""):
        """Returns the answer to a request, a dict, "value" being the bytes that came with it.

        Raises:
          ServerLostError: none came.
          TfdistError: what the server says.
        """
        with self._lock:
            try:
                send_all(self._connection, encode(header, value), time.monotonic() + _REPLY_SECONDS)
                answer, received = receive_frame(self._connection, time.monotonic() + _REPLY_SECONDS)
            except (OSError, FrameError) as error:
                shut_down(self._connection)  # its answer would be taken for the next one's
                raise errors.ServerLostError(
                    f"Parameter server {self._server} at {self._address} was expected to answer {header['op']!r} on "
                    f"rank {self._rank}. Received: {error}. See its output for why it ended.",
                    self._server,
                ) from error
        if "error" in answer:
            raise getattr(errors, answer["error"], errors.TransportError)(answer["text"])
        return {**answer, "value": received}

    def look(self):
        """Returns whether the server is there; None while it is asked something."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return not is_closed(self._connection)
        finally:
            self._lock.release()

    def fileno(self):
        """Returns the descriptor, -1 when it is closed."""
        return self._connection.fileno()

    def close(self):
        """Ends it, and whoever waits for an answer."""
        shut_down(self._connection)
