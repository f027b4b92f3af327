"""A socket whose sent bytes somebody changes on their way."""


class TamperingSocket:
    """Passes everything on, but for what it is told to change.

    Args:
      direction: int, which of the sides this is.
      sock: the socket.
      changes: dict of `(direction, position)` in all that is sent -> what is XORed to the byte there.
    """

    def __init__(self, direction, sock, changes):
        self._direction, self._sock, self._changes = direction, sock, changes
        self._sent = 0
        self.changed = False

    def sendall(self, data):
        data = bytearray(data)
        for i in range(len(data)):
            change = self._changes.get((self._direction, self._sent + i), 0)
            data[i] ^= change
            self.changed |= change != 0
        self._sent += len(data)
        self._sock.sendall(data)

    def __getattr__(self, name):
        return getattr(self._sock, name)
