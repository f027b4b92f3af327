"""A rank of the yardstick: what limits.cc does, called for many iterations at once.

`task()["limit"]` chooses: "shm" a staged all-reduce through shared memory, "tcp" the traffic of an all-reduce over raw
sockets (nothing is added), "memcpy" a copy and "add" a += b of as many bytes, by every rank on its own.
"""

import ctypes
import mmap
import os
import socket
import time
from pathlib import Path

import numpy as np
from serve import pin, serve, task

_MEET_SECONDS = 60.0
_SPINS = 2000  # some 20-50 us of pauses before the processor is yielded; none where ranks outnumber cores


def main():
    rank = int(os.environ["TFDIST_RANK"])
    world_size = int(os.environ["TFDIST_WORLD_SIZE"])
    pin(rank)
    library = ctypes.CDLL(task()["library"])
    library.limits_window_bytes.restype = ctypes.c_int64
    pinned = bool(task()["cores"][rank])
    limits = {"shm": _shared_memory, "tcp": _sockets, "memcpy": _copy, "add": _add}
    prepare = limits[task()["limit"]](library, rank, world_size, pinned)
    serve(rank, world_size, prepare, tolerance=0.0 if task()["limit"] == "shm" else None)


def _shared_memory(library, rank, world_size, pinned):
    num_bytes = library.limits_window_bytes() * world_size
    path = Path(task()["folder"]) / "windows"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, num_bytes)  # all ranks to the same length: it stays zero
    windows = np.frombuffer(mmap.mmap(descriptor, num_bytes), np.uint8)
    os.close(descriptor)
    spins = _SPINS if pinned else 0

    def prepare(array):
        return lambda iterations: library.limits_shm(
            _pointer(windows), rank, world_size, spins, _pointer(array), _long(array.size), _long(iterations)
        )

    return prepare


def _sockets(library, rank, world_size, pinned):
    sockets = _connect(Path(task()["folder"]), rank, world_size)
    descriptors = (ctypes.c_int * world_size)(*(-1 if sock is None else sock.fileno() for sock in sockets))

    def prepare(array, keep=sockets):
        return lambda iterations: library.limits_tcp(
            descriptors, rank, world_size, int(pinned), _pointer(array), _long(array.nbytes), _long(iterations)
        )

    return prepare


def _copy(library, *_):
    def prepare(array):
        other = np.ones_like(array)
        return lambda iterations: library.limits_copy(
            _pointer(array), _pointer(other), _long(array.nbytes), _long(iterations)
        )

    return prepare


def _add(library, *_):
    def prepare(array):
        other = np.zeros_like(array)
        other.fill(0)
        return lambda iterations: library.limits_add(
            _pointer(array), _pointer(other), _long(array.size), _long(iterations)
        )

    return prepare


def _connect(folder, rank, world_size):
    """Connects the ranks on loopback; returns their sockets, None at `rank`."""
    sockets = [None] * world_size
    with socket.create_server(("127.0.0.1", 0), backlog=world_size) as listener:
        listener.settimeout(_MEET_SECONDS)
        partial = folder / f"port-{rank}.partial"
        partial.write_text(str(listener.getsockname()[1]))
        partial.rename(folder / f"port-{rank}")
        for peer in range(rank):
            sockets[peer] = socket.create_connection(("127.0.0.1", _port(folder, peer)), _MEET_SECONDS)
            sockets[peer].sendall(bytes([rank]))
        for _ in range(rank + 1, world_size):
            connection, _ = listener.accept()
            sockets[connection.recv(1)[0]] = connection
    for sock in filter(None, sockets):
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_CONGESTION"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return sockets


def _port(folder, peer):
    deadline = time.monotonic() + _MEET_SECONDS
    path = folder / f"port-{peer}"
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {peer} did not come within {_MEET_SECONDS:g} s")
        time.sleep(0.01)
    return int(path.read_text())


def _pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def _long(value):
    return ctypes.c_int64(value)


if __name__ == "__main__":
    main()
