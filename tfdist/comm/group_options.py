"""What the native core is told of a group: its connections, its shared memory, and which slots its ranks have."""

import ctypes
import dataclasses
import itertools
import os

from tfdist.cluster import variables
from tfdist.collectives import Topology
from tfdist.comm import library
from tfdist.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Slots:
    """Who is there, of a group whose members may change.

    Args:
      members: tuple of the slots that have a rank, in the order of ranks: of seniority.
      count: int, how many slots there are.
    """

    members: tuple
    count: int


def make(rank, world_size, sockets, segments, generation, timeout, slots):
    """Returns the `library.GroupOptions` of the arguments of `Group`; the sockets are the native core's from then on."""
    heartbeat = variables.heartbeat_seconds(os.environ)
    lists = [peer for peer in sockets if peer is not None]
    per_peer = len(lists[0]) if lists else 1
    descriptors = [[-1] * per_peer if peer is None else [sock.detach() for sock in peer] for peer in sockets or [None]]
    shared = [-1] * world_size if segments is None else segments
    options = library.GroupOptions(
        rank=rank,
        world_size=world_size,
        sockets=(ctypes.c_int * (world_size * per_peer))(*itertools.chain(*descriptors)),
        sockets_per_peer=per_peer,
        segments=(ctypes.c_int * world_size)(*shared),
        generation=generation,
        timeout_seconds=timeout,
        is_eager=num_cores() > 1,
        is_crowded=sum(descriptor >= 0 for descriptor in shared) > os.cpu_count(),
        heartbeat_seconds=heartbeat,
    )
    if slots is not None:
        options.is_elastic = 1
        options.slots = (ctypes.c_int32 * world_size)(*slots.members)
        options.has_empty_slots = len(slots.members) < slots.count
    return options


def refused(rank, world_size, segments):
    """Returns the error for a group that the native core does not form."""
    return ConfigurationError(
        f"the native core was expected to form the group. Received: rank={rank}, world_size={world_size}, "
        f"segments={segments}. Set TFDIST_TRANSPORT=tcp if shared memory cannot be mapped here (a limit on memory?)."
    )


def num_cores():
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def checked(topology, world_size, segments):
    """Returns the `Topology` of a group, one host where none is given."""
    if topology is None:
        shared = segments is not None and min(segments, default=-1) >= 0
        return Topology((range(world_size),), shared=shared)
    if topology.world_size != world_size:
        raise ConfigurationError(
            f"topology is expected to hold {world_size} ranks. Received: topology={topology}. List every rank once."
        )
    return topology
