"""Frames of the rendezvous store: `u32 length | u16 header length | JSON header | binary value`.

All integers are big-endian. A frame is at most `MAX_FRAME_BYTES` long; the length is checked before a byte of the
body is read, the header is JSON and the value stays bytes, so nothing a peer sends is ever unpickled or executed.
"""

import json
import select
import socket
import struct
import time

MAX_FRAME_BYTES = 1 << 20
MAX_KEY_BYTES = 1024
MAX_WAIT_SECONDS = 7 * 24 * 3600.0
_LENGTH = struct.Struct(">I")
_HEADER_LENGTH = struct.Struct(">H")


class FrameError(Exception):
    """The peer sent what is not a frame, or closed the connection within one."""


class ConnectionClosedError(FrameError):
    """The peer closed the connection."""


def receive_exactly(sock, num_bytes, deadline=None):
    """Reads `num_bytes`, or raises.

    Args:
      sock: a connected socket; its time-out is changed.
      num_bytes: how many bytes to read.
      deadline: `time.monotonic()` value by which all must be here, or None to wait for ever.

    Raises:
      TimeoutError: the deadline passed.
      ConnectionClosedError: the peer closed the connection first.
    """
    buffer = bytearray(num_bytes)
    view, have = memoryview(buffer), 0
    while have < num_bytes:
        received = _receive_into(sock, view[have:], deadline)
        if received == 0:
            raise ConnectionClosedError(f"connection closed after {have} of {num_bytes} bytes")
        have += received
    return bytes(buffer)


def receive_some(sock, most_bytes, deadline):
    """Reads what is there, from 1 to `most_bytes` bytes; waits and raises as `receive_exactly`."""
    buffer = bytearray(most_bytes)
    received = _receive_into(sock, buffer, deadline)
    if received == 0:
        raise ConnectionClosedError(f"connection closed after 0 of {most_bytes} bytes")
    return bytes(buffer[:received])


def _receive_into(sock, buffer, deadline):
    sock.settimeout(None if deadline is None else _remaining(deadline))
    return sock.recv_into(buffer)


def send_all(sock, data, deadline):
    """Writes `data` before the deadline, or raises TimeoutError."""
    sock.settimeout(_remaining(deadline))
    sock.sendall(data)


def encode(header, value=b""):
    """Makes one frame. Raises ValueError where it would be longer than `MAX_FRAME_BYTES`."""
    head = json.dumps(header, separators=(",", ":")).encode()
    length = _HEADER_LENGTH.size + len(head) + len(value)
    if length > MAX_FRAME_BYTES or len(head) > 0xFFFF:
        raise ValueError(
            f"A frame is expected to have at most {MAX_FRAME_BYTES} bytes. Received: length={length}. "
            "Store large data elsewhere, and its address here."
        )
    return b"".join((_LENGTH.pack(length), _HEADER_LENGTH.pack(len(head)), head, value))


def receive_frame(sock, deadline=None, frame_seconds=10.0):
    """Reads one frame.

    Args:
      sock: a connected socket.
      deadline: by when the frame must begin (`time.monotonic()`), or None: a quiet peer is no fault.
      frame_seconds: how long a frame that has begun may take.

    Returns:
      `(header, value)`: a dict and bytes.

    Raises:
      ConnectionClosedError: no frame follows.
      FrameError: too long, not JSON, not an object, or cut off.
      TimeoutError: one of the two limits passed.
    """
    first = receive_exactly(sock, 1, deadline)
    deadline = time.monotonic() + frame_seconds
    (length,) = _LENGTH.unpack(first + receive_exactly(sock, _LENGTH.size - 1, deadline))
    if not _HEADER_LENGTH.size <= length <= MAX_FRAME_BYTES:
        raise FrameError(f"frame of {length} bytes, at most {MAX_FRAME_BYTES} are allowed")
    body = receive_exactly(sock, length, deadline)
    (head_length,) = _HEADER_LENGTH.unpack_from(body)
    end = _HEADER_LENGTH.size + head_length
    try:
        header = json.loads(body[_HEADER_LENGTH.size : end])
    except (ValueError, RecursionError) as error:
        raise FrameError("the header is not JSON") from error
    if end > length or not isinstance(header, dict):
        raise FrameError("the header is not a JSON object")
    return header, body[end:]


def is_closed(sock):
    """Returns whether the other end has closed a connection, on which nobody receives meanwhile."""
    look = select.poll()
    try:
        look.register(sock, select.POLLIN)  # a socket with a time-out would wait in spite of MSG_DONTWAIT
        return bool(look.poll(0)) and sock.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


def shut_down(sock):
    """Closes a socket and wakes the thread that is blocked on it, which `close()` alone does not."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # not connected, or closed before
    sock.close()


def _remaining(deadline):
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining
