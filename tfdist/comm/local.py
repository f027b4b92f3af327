"""A group inside one process, its ranks threads: for tests and for trying things out."""

import os
import socket
import threading

from tfdist.cluster import variables
from tfdist.comm import shared_memory
from tfdist.comm.group import Group


def connect(world_size, *, timeout=60.0, transport=None):
    """Returns `world_size` groups that are connected to each other.

    Args:
      world_size: int >= 1.
      timeout: float seconds that any wait may last.
      transport: "auto" or "shm" for shared memory where the platform has it, "tcp" for socket pairs alone; None means
        TFDIST_TRANSPORT.
    """
    transport = transport or variables.transport(os.environ)
    sockets = [[None] * world_size for _ in range(world_size)]
    for low in range(world_size):
        for high in range(low + 1, world_size):
            pair = socket.socketpair()
            sockets[low][high], sockets[high][low] = [pair[0]], [pair[1]]
    segments = [-1] * world_size
    if transport != "tcp" and world_size > 1:
        segments = [shared_memory.create(rank, world_size)[0] for rank in range(world_size)]
    try:
        return [Group(rank, world_size, row, timeout=timeout, segments=segments) for rank, row in enumerate(sockets)]
    finally:
        shared_memory.close_all(segments)


def run(world_size, function, *, timeout=60.0, transport=None):
    """Calls `function(group)` on a thread per rank.

    Args:
      world_size: int >= 1.
      function: called with the rank's `Group`.
      timeout: float seconds for each wait of the groups.
      transport: as in `connect`.

    Returns:
      A list of the results, by rank.

    Raises:
      The first exception of the lowest rank that had one; all threads have ended by then.
    """
    results, errors = [None] * world_size, [None] * world_size

    def body(group):
        try:
            with group:
                results[group.rank] = function(group)
        except BaseException as error:  # handed to the caller below
            errors[group.rank] = error

    groups = connect(world_size, timeout=timeout, transport=transport)
    threads = [threading.Thread(target=body, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results
