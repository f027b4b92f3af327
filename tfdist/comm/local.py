"""A group inside one process, its ranks threads: for tests and for trying things out."""

import socket
import threading

from tfdist.comm.group import Group


def connect(world_size, *, timeout=60.0):
    """Returns `world_size` groups that are connected to each other by socket pairs."""
    sockets = [[None] * world_size for _ in range(world_size)]
    for low in range(world_size):
        for high in range(low + 1, world_size):
            sockets[low][high], sockets[high][low] = socket.socketpair()
    return [Group(rank, world_size, row, timeout=timeout) for rank, row in enumerate(sockets)]


def run(world_size, function, *, timeout=60.0):
    """Calls `function(group)` on a thread per rank.

    Args:
      world_size: int >= 1.
      function: called with the rank's `Group`.
      timeout: float seconds for each wait of the groups.

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

    threads = [threading.Thread(target=body, args=(group,)) for group in connect(world_size, timeout=timeout)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results
