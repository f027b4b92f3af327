"""Strangers at a job's door: silent ones, slow ones, some with garbage, some with what they have heard others say."""

import asyncio
import contextlib
import os
import socket
import threading

from tfdist.cluster.address import parse_address
from tfdist.cluster.handshake import authenticate

KINDS = ("silent", "slow", "garbage", "replay")
_HELLO_BYTES = 8 + 32 + 2  # of a responder without an identity; what follows is its verdict
_STEP_SECONDS = 0.05


class _Recorder:
    """A socket that remembers what is sent."""

    def __init__(self, sock):
        self._sock, self.sent = sock, b""

    def sendall(self, data):
        self.sent += data
        self._sock.sendall(data)

    def __getattr__(self, name):
        return getattr(self._sock, name)


def record(address, secret, identity=b""):
    """Returns what somebody who knows the secret says at a door, bytes."""
    with socket.create_connection(parse_address(address), 5.0) as sock:
        recorder = _Recorder(sock)
        authenticate(recorder, secret, initiator=True, identity=identity)
        return recorder.sent


class Strangers(threading.Thread):
    """`count` strangers of all kinds come to an address, evenly over `seconds`, and stay as long as they may.

    Args:
      address: "host:port".
      recording: bytes, from `record`.
      count: int.
      seconds: float.
    """

    def __init__(self, address, recording, count, seconds):
        super().__init__(daemon=True)
        self._address, self._recording, self._count, self._seconds = address, recording, count, seconds
        self.num_let_in = self.num_came = 0
        self.start()

    def run(self):
        asyncio.run(self._all())

    async def _all(self):
        await asyncio.gather(*(self._visit(index) for index in range(self._count)))

    async def _visit(self, index):
        start = self._seconds * index / self._count
        await asyncio.sleep(start)
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.open_connection(*parse_address(self._address))
            self.num_came += 1
            try:
                await asyncio.wait_for(
                    self._talk(KINDS[index % len(KINDS)], reader, writer), self._seconds - start + 0.5
                )
            finally:
                writer.transport.abort()

    async def _talk(self, kind, reader, writer):
        if kind == "garbage":
            writer.write(os.urandom(100))
        elif kind == "replay":
            writer.write(self._recording)
        elif kind == "slow":
            for index in range(len(self._recording)):
                writer.write(self._recording[index : index + 1])
                await asyncio.sleep(_STEP_SECONDS)
        heard = 0
        while data := await reader.read(4096):
            verdict = data[_HELLO_BYTES - heard : _HELLO_BYTES - heard + 1] if heard <= _HELLO_BYTES else b""
            self.num_let_in += verdict == b"\x01"
            heard += len(data)
