"""A group inside one process, its ranks threads: for tests and for trying things out."""

import os
import socket
import threading

from tfdist.cluster import variables
from tfdist.collectives import ALL_REDUCE, Topology
from tfdist.comm import shared_memory, tuning
from tfdist.comm.group import Group


def connect(world_size, *, timeout=60.0, transport=None, topology=None, measured=False):
    """Returns `world_size` groups that are connected to each other.

    Args:
      world_size: int >= 1.
      timeout: float seconds that any wait may last.
      transport: "auto" or "shm" for shared memory where the platform has it, "tcp" for socket pairs alone; None means
        TFDIST_TRANSPORT.
      topology: a `Topology` to pretend: ranks of different hosts share no memory then. None: one host.
      measured: bool; whether the groups are tuned as those of a job are (`comm.tuning`).

    Raises:
      ConfigurationError: a variable has no meaning, or the platform does not allow as much.
    """
    transport = transport or variables.transport(os.environ)
    algorithm = variables.algorithm(os.environ, ALL_REDUCE)
    shares = transport != "tcp" and world_size > 1
    topology = topology or Topology((range(world_size),), shared=shares)
    sockets = [[None] * world_size for _ in range(world_size)]
    for low in range(world_size):
        for high in range(low + 1, world_size):
            pair = socket.socketpair()
            sockets[low][high], sockets[high][low] = [pair[0]], [pair[1]]
    segments = [shared_memory.create(rank, world_size)[0] if shares else -1 for rank in range(world_size)]
    host_of = topology.host_of
    try:
        groups = []
        for rank, row in enumerate(sockets):
            seen = [descriptor if host_of[peer] == host_of[rank] else -1 for peer, descriptor in enumerate(segments)]
            groups.append(Group(rank, world_size, row, timeout=timeout, segments=seen, topology=topology))
            groups[-1].algorithm = algorithm
    finally:
        shared_memory.close_all(segments)
    if measured:
        on_threads(groups, tuning.tune)
    return groups


def run(world_size, function, **settings):
    """Calls `function(group)` on a thread per rank.

    Args:
      world_size: int >= 1.
      function: called with the rank's `Group`.
      **settings: as for `connect`.

    Returns:
      A list of the results, by rank.

    Raises:
      The first exception of the lowest rank that had one; all threads have ended by then.
    """

    def body(group):
        with group:
            return function(group)

    return on_threads(connect(world_size, **settings), body)


def on_threads(groups, function):
    """Calls `function(group)` on a thread per group; returns and raises as `run`. The groups stay open."""
    results, errors = [None] * len(groups), [None] * len(groups)

    def body(group):
        try:
            results[group.rank] = function(group)
        except BaseException as error:  # handed to the caller below
            errors[group.rank] = error

    threads = [threading.Thread(target=body, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if error is not None:
            raise error
    return results
