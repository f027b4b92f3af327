"""Moves bytes between a plain socket and a TLS connection, both ways, by one thread."""

import contextlib
import select
import socket
import ssl
import threading

_BUFFER_BYTES = 1 << 18
_RECORD_BYTES = 1 << 14  # what TLS makes at once


class Pump:
    """Everything that comes at `near` leaves by `far` and the other way around, until both have ended.

    An end that closes one way closes that way at the other one. Neither is read while the other does not take what was
    read before, so that whoever is slow is felt at the far end as on a plain connection.

    Args:
      near: a plain socket, ours.
      far: an `ssl.SSLSocket` after its handshake, ours.
    """

    def __init__(self, near, far):
        self._near, self._far = near, far
        for sock in (near, far):
            sock.setblocking(False)
        self._outgoing = _Way(near.recv_into, far.send, lambda: socket.socket.shutdown(far, socket.SHUT_WR))
        self._incoming = _Way(far.recv_into, near.send, lambda: near.shutdown(socket.SHUT_WR))

    def start(self):
        """Moves bytes from now on."""
        threading.Thread(target=self._run, name="tfdist-tls", daemon=True).start()

    def _run(self):
        poll = select.poll()
        try:
            while not (self._outgoing.is_over and self._incoming.is_over):
                if self._outgoing.move() | self._incoming.move():
                    continue
                for sock, reads, writes in (
                    (self._near, self._outgoing, self._incoming),
                    (self._far, self._incoming, self._outgoing),
                ):
                    events = select.POLLIN * reads.wants_to_read | select.POLLOUT * writes.wants_to_write
                    poll.register(sock, events)
                for descriptor, event in poll.poll():
                    self._end_broken(descriptor, event)
        except (OSError, ValueError):
            pass  # an end is gone: closing both says so to the other
        finally:
            for sock in (self._near, self._far):
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
                sock.close()

    def _end_broken(self, descriptor, event):
        # A hang-up is reported even where nothing is asked for: without a reader, it would be so for ever.
        if event & (select.POLLERR | select.POLLNVAL) or (event & select.POLLHUP and not event & select.POLLIN):
            reads = self._outgoing if descriptor == self._near.fileno() else self._incoming
            if not reads.wants_to_read:
                raise ConnectionError("an end is gone")


class _Way:
    """One direction: what was read and not yet written."""

    def __init__(self, read_into, write, finish):
        self._read_into, self._write, self._finish = read_into, write, finish
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._begin = self._end = 0
        self._has_ended = self.is_over = False

    @property
    def wants_to_write(self):
        return self._begin < self._end

    @property
    def wants_to_read(self):
        return not (self.wants_to_write or self._has_ended)

    def move(self):
        """Reads and writes what it can without waiting; says whether anything moved."""
        moved = False
        if self.wants_to_read:
            moved = self._read()
        while self.wants_to_write:
            try:
                self._begin += self._write(self._buffer[self._begin : self._end])
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return moved
            moved = True
        if self._has_ended and not self.is_over:
            self.is_over = moved = True
            self._finish()
        return moved

    def _read(self):
        self._begin = self._end = 0
        while self._end + _RECORD_BYTES <= len(self._buffer):
            try:
                count = self._read_into(self._buffer[self._end :])
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except ConnectionError:
                count = 0
            if count == 0:
                self._has_ended = True
                break
            self._end += count
        return self._end > 0 or self._has_ended
