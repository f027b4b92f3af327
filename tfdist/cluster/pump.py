"""Moves bytes between a plain socket and a TLS connection, both ways, by one thread."""

import contextlib
import select
import socket
import ssl
import threading
import time

_BUFFER_BYTES = 1 << 18
_LINGER_SECONDS = 2.0
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a host that has vanished: 25 s


class Pump:
    """Everything that comes at `near` leaves by `far` and the other way around, until both have ended.

    An end that closes one way closes that way at the other one, after all that came before. Neither is read while the
    other does not take what was read before, so that whoever is slow is felt at the far end as on a plain connection.

    Args:
      near: a plain socket, the pump's from now on.
      far: a connected TCP socket, too.
      tls: the `ssl.SSLObject` after its handshake.
      incoming, outgoing: its `ssl.MemoryBIO`s.
    """

    def __init__(self, near, far, tls, incoming, outgoing):
        self._near, self._far = near, far
        for sock in (near, far):
            sock.setblocking(False)
        _keep_alive(far)
        self._encrypting = _Encrypting(near, far, tls, incoming, outgoing)
        self._decrypting = _Decrypting(near, far, tls, incoming)

    def start(self):
        """Moves bytes from now on."""
        threading.Thread(target=self._run, name="tfdist-tls", daemon=True).start()

    def _run(self):
        try:
            self._move_all()
        except (OSError, ValueError):
            pass  # an end is gone: closing both says so to the other
        finally:
            for sock in (self._near, self._far):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def _move_all(self):
        until = None
        while not (self._encrypting.is_over and self._decrypting.is_over):
            if self._encrypting.move() | self._decrypting.move():
                continue
            if self._encrypting.is_over and self._decrypting.discards:
                # Closing while bytes arrive would take back what the peer has not read yet.
                until = until or time.monotonic() + _LINGER_SECONDS
                if time.monotonic() > until:
                    return
            poll = select.poll()
            for sock, reads, writes in (
                (self._near, self._encrypting, self._decrypting),
                (self._far, self._decrypting, self._encrypting),
            ):
                events = select.POLLIN * reads.wants_to_read | select.POLLOUT * writes.wants_to_write
                if events:  # one that has ended would be reported for ever
                    poll.register(sock, events)
            poll.poll(None if until is None else _LINGER_SECONDS * 1000)


class _AbstractDirection:
    """One of the two ways. What was read and is not written yet is in `_left`; nothing more is read meanwhile."""

    def __init__(self):
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._left = memoryview(b"")
        self._has_ended = False
        self.is_over = False

    @property
    def wants_to_write(self):
        return len(self._left) > 0

    @property
    def wants_to_read(self):
        return not (self._left or self._has_ended)


class _Encrypting(_AbstractDirection):
    """From near to far."""

    def __init__(self, near, far, tls, incoming, outgoing):
        super().__init__()
        self._near, self._far, self._tls, self._incoming, self._outgoing = near, far, tls, incoming, outgoing

    def move(self):
        """Reads and writes what it can without waiting; says whether anything moved."""
        moved = False
        if self.wants_to_read:
            moved = self._read()
        if not self._left and self._outgoing.pending:
            self._left = memoryview(self._outgoing.read())
        while self._left:
            try:
                self._left = self._left[self._far.send(self._left) :]
            except BlockingIOError:
                return moved
            moved = True
        return self._end() or moved

    def _read(self):
        try:
            count = self._near.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except ConnectionError:
            count = 0
        begin = 0
        while begin < count:
            begin += self._tls.write(self._buffer[begin:count])
        self._has_ended = count == 0
        return True

    def _end(self):
        # `unwrap` tells the peer, and looks for its last word: it must not find anything else.
        if not self._has_ended or self.is_over or self._incoming.pending or self._tls.pending():
            return False
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._far.setblocking(True)
        self._far.settimeout(_LINGER_SECONDS)
        self._far.sendall(self._outgoing.read())
        self._far.setblocking(False)
        self._far.shutdown(socket.SHUT_WR)
        self.is_over = True
        return True


class _Decrypting(_AbstractDirection):
    """From far to near."""

    def __init__(self, near, far, tls, incoming):
        super().__init__()
        self._near, self._far, self._tls, self._incoming = near, far, tls, incoming
        self._encrypted = memoryview(bytearray(_BUFFER_BYTES))
        self.discards = False  # nobody takes what comes

    def move(self):
        """Reads and writes what it can without waiting; says whether anything moved."""
        moved = False
        if self.wants_to_read:
            moved = self._read()
        while self._left:
            try:
                sent = len(self._left) if self.discards else self._near.send(self._left)
            except BlockingIOError:
                return moved
            except ConnectionError:
                self.discards = moved = True
                continue
            self._left = self._left[sent:]
            moved = True
        if self._has_ended and not self.is_over:
            self.is_over = moved = True
            with contextlib.suppress(OSError):
                self._near.shutdown(socket.SHUT_WR)
        return moved

    def _read(self):
        if not self._incoming.pending and not self._tls.pending() and not self._receive():
            return False
        count = 0
        while count < len(self._buffer):
            try:
                got = self._tls.read(len(self._buffer) - count, self._buffer[count:])
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                got = 0
            if got == 0:
                self._has_ended = True
                break
            count += got
        self._left = self._buffer[:count]
        return True

    def _receive(self):
        try:
            count = self._far.recv_into(self._encrypted)
        except BlockingIOError:
            return False
        except ConnectionError:
            count = 0
        if count == 0:
            self._incoming.write_eof()
        else:
            self._incoming.write(self._encrypted[:count])
        return True


def _keep_alive(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
