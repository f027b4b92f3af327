"""Limits what connections that have not proven the secret may cost: how many there are, and how fast they come.

A stranger holds a place for at most the handshake's time-out. Where all places are taken, the one who has waited longest
goes, not the one who comes: whoever knows the secret needs milliseconds, however many others say nothing.
"""

import collections
import contextlib
import itertools
import socket
import threading
import time

_PLACES = 128
_CROWD = 16  # so many who have waited long, or have been turned away within a second
_LONG_SECONDS = 0.2  # whoever knows the secret, even one of hundreds who start at once, is quicker
_PAUSE_SECONDS = 0.01


class WaitingRoom:
    """Holds the connections of one listener until they have proven the secret. Thread safe.

    Args:
      places: int, how many may wait at a time; 128 by default.
    """

    def __init__(self, places=None):
        self._places = places or _PLACES
        self._lock = threading.Lock()  # guards what follows
        self._waiting = collections.OrderedDict()  # connection -> since when; who has waited longest is first
        self._turned_away = collections.deque(maxlen=_CROWD)  # when
        self._num_evicted = 0

    @property
    def num_evicted(self):
        """How many have gone to make room."""
        return self._num_evicted

    @contextlib.contextmanager
    def place(self, connection):
        """Within it `connection` is unproven, and may be shut down to make room.

        Raises:
          OSError: there are no descriptors left.
        """
        with connection.dup() as ours, self._seated(ours):  # of our own: `connection` may be closed, or become TLS
            yield

    @contextlib.contextmanager
    def _seated(self, connection):
        with self._lock:
            self._waiting[connection] = time.monotonic()
            if len(self._waiting) > self._places:
                first, _ = self._waiting.popitem(last=False)
                self._num_evicted += 1
                with contextlib.suppress(OSError):  # it has gone by itself
                    first.shutdown(socket.SHUT_RDWR)
        is_proven = False
        try:
            yield
            is_proven = True
        finally:
            with self._lock:
                self._waiting.pop(connection, None)
                if not is_proven:
                    self._turned_away.append(time.monotonic())

    def clear(self):
        """Shuts all of them down."""
        with self._lock:
            for connection in self._waiting:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def pause(self):
        """Called before each connection is accepted: a crowd of strangers takes a small share of a core, and no more."""
        if self._is_crowded():
            time.sleep(_PAUSE_SECONDS)

    def _is_crowded(self):
        now = time.monotonic()
        with self._lock:
            since = next(itertools.islice(self._waiting.values(), _CROWD - 1, None), now)
            is_besieged = len(self._turned_away) == _CROWD and now - self._turned_away[0] < 1.0
        return is_besieged or now - since > _LONG_SECONDS
