"""Lets those in who prove the secret, whoever else stands at the door."""

import collections
import contextlib
import selectors
import socket
import threading
import time

from absl import logging

from tfdist.cluster.address import format_address
from tfdist.cluster.handshake import secure
from tfdist.cluster.waiting_room import WaitingRoom
from tfdist.errors import AuthenticationError

_HANDSHAKE_SECONDS = 10.0
_LOG_SECONDS = 1.0
_JOIN_SECONDS = 5.0


class Doorman:
    """Accepts the connections of a listener and hears them all at once: a silent one keeps nobody waiting.

    Args:
      listener: a listening socket; made non-blocking, closed by its owner.
      secret: bytes, the job's secret.
    """

    def __init__(self, listener, secret):
        self._listener, self._secret = listener, secret
        self._room = WaitingRoom()
        self._lock = threading.Lock()  # guards what follows
        self._proven = collections.deque()
        self._threads = set()
        self._closed = False
        self._bell, self._bell_rope = socket.socketpair()
        listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        for sock in (self._bell, listener):
            self._selector.register(sock, selectors.EVENT_READ)

    def next(self, timeout):
        """Returns `(socket, identity)` of the next one who has proven the secret.

        Raises:
          TimeoutError: nobody has within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                if self._proven:
                    return self._proven.popleft()
            ready = self._selector.select(max(deadline - time.monotonic(), 0.0))
            if not ready:
                raise TimeoutError("timed out")
            for key, _ in ready:
                self._accept() if key.fileobj is self._listener else self._bell.recv(1)

    def close(self):
        """Sends away whoever has not been taken."""
        with self._lock:
            self._closed = True
            threads, proven = list(self._threads), list(self._proven)
        self._room.clear()
        for thread in threads:
            thread.join(_JOIN_SECONDS)
        for sock, _ in proven:
            sock.close()
        self._selector.close()
        self._bell.close()
        self._bell_rope.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _accept(self):
        self._room.pause()
        try:
            sock, peer = self._listener.accept()
        except OSError:  # it has gone again, or there are no descriptors left
            return
        thread = threading.Thread(target=self._hear, args=(sock, peer), name="tfdist-doorman", daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _hear(self, sock, peer):
        try:
            sock.setblocking(True)
            with self._room.place(sock):
                found = secure(sock, self._secret, initiator=False, timeout=_HANDSHAKE_SECONDS)
        except (AuthenticationError, OSError) as error:
            sock.close()
            found = None
            text = "turned away %s: %s"
            logging.log_every_n_seconds(logging.WARNING, text, _LOG_SECONDS, format_address(*peer[:2]), error)
        with self._lock:
            self._threads.discard(threading.current_thread())
            is_late = self._closed and found is not None
            if found is not None and not is_late:
                self._proven.append(found)
                with contextlib.suppress(OSError):
                    self._bell_rope.send(b"!")
        if is_late:
            found[0].close()
