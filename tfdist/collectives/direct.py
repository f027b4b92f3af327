"""Direct: every slice goes straight to its owner, who adds them up and hands the sum to all. Two latencies for any P.

Made for ranks that share memory: the owner's result is written once and read by everybody (a multicast), so less is
moved than in any other algorithm. The reduce-scatter is the pairwise exchange of Thakur, Rabenseifner & Gropp, "Optimization
of collective communication operations in MPICH" (2005), with no round waiting for the one before. The owner adds in a fixed
order, itself first and then the ranks before it, so results are repeatable, and all ranks have its bits.
"""

from tfdist.collectives.cost import Round, Sent, tally
from tfdist.collectives.plan import receive, receive_reduce, receive_reduce_last, send


def all_reduce(rank, world_size):
    """One chunk per rank. Costs 2 latencies and 2 S (P-1)/P bytes sent, in shared memory S; S (P-1)/P reduced."""
    ranks, owned = range(world_size), [[owner] for owner in range(world_size)]
    yield from reduce_to_owners(rank, ranks, owned, complete=True)
    yield from gather_from_owners(rank, ranks, owned)


def cost(topology, num_bytes):
    """2 latencies; S (P-1)/P bytes sent to the owners and reduced, S/P (without shared memory S (P-1)/P) sent by them."""
    ranks = range(topology.world_size)
    to_owners = [Sent(rank, adders=[owner]) for rank in ranks for owner in ranks if owner != rank]
    from_owners = [Sent(owner, keepers=[rank for rank in ranks if rank != owner]) for owner in ranks]
    share = num_bytes / topology.world_size
    return tally(topology, [Round(to_owners, share), Round(from_owners, share)])


def reduce_to_owners(index, ranks, owned, complete):
    """Reduces each chunk among `ranks` onto its owner.

    Args:
      index: this rank's place in `ranks`.
      ranks: the ranks that take part.
      owned: one list of chunks per place in `ranks`.
      complete: whether all ranks of the collective are in the sums then.
    """
    count = len(ranks)
    for target in [(index + distance) % count for distance in range(1, count)]:
        for chunk in owned[target]:
            yield send(chunk, ranks[target])
    for distance in range(1, count):
        reduce = receive_reduce_last if complete and distance == count - 1 else receive_reduce
        for chunk in owned[index]:
            yield reduce(chunk, ranks[index - distance])


def gather_from_owners(index, ranks, owned):
    """Copies each owner's chunks to all of `ranks`; arguments as in `reduce_to_owners`."""
    count = len(ranks)
    for chunk in owned[index]:
        for distance in range(1, count):  # one chunk's sends stand together: a multicast
            yield send(chunk, ranks[(index + distance) % count])
    for source in [(index - distance) % count for distance in range(1, count)]:
        for chunk in owned[source]:
            yield receive(chunk, ranks[source])
