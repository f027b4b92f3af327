"""Recursive doubling: everybody swaps whole arrays with a partner 1, 2, 4, ... away. The fewest latencies: small arrays.

Thakur, Rabenseifner & Gropp, "Optimization of collective communication operations in MPICH" (2005), on all-reduce. Partners
add the same two values, own one first; floating-point addition commutes, so all ranks end with the same bits. For the
extra ranks of a P that is no power of two see `folding.py`.
"""

from tfdist.collectives.cost import Round, Sent, tally
from tfdist.collectives.folding import core_ranks, distances, extras
from tfdist.collectives.plan import receive, receive_reduce, receive_reduce_last, send


def all_reduce(rank, world_size):
    """One chunk. Costs ceil(log2 P) latencies, and as many times S bytes sent and reduced per rank."""
    core = core_ranks(world_size)
    if rank not in core:
        yield from _extra(rank, core)
        return
    position = core.index(rank)
    for extra in extras(rank, world_size):
        yield receive_reduce(0, extra)
    for distance in distances(world_size):
        partner, last = core[position ^ distance], 2 * distance == len(core)
        listeners = [*extras(partner, world_size), *extras(rank, world_size)] if last else []
        for peer in [partner, *listeners]:
            yield send(0, peer)
        yield receive_reduce_last(0, partner) if last else receive_reduce(0, partner)


def _extra(rank, core):
    """Gives its array to the rank before it, then does that rank's last addition as well."""
    neighbour = rank - 1
    partner = core[core.index(neighbour) ^ (len(core) // 2)]
    yield send(0, neighbour)
    yield receive(0, neighbour)
    yield receive_reduce_last(0, partner)


def cost(topology, num_bytes):
    """log2 P rounds of alpha + S beta + S gamma (Thakur et al. 2005); one more before them where P is no power of two."""
    count, core = topology.world_size, core_ranks(topology.world_size)
    rounds = [Round([Sent(extra, adders=[rank]) for rank in core for extra in extras(rank, count)], num_bytes)]
    for distance in distances(count):
        sent = []
        for position, rank in enumerate(core):
            partner, last = core[position ^ distance], 2 * distance == len(core)
            adders = [partner, *extras(partner, count)] if last else [partner]
            sent.append(Sent(rank, adders, keepers=extras(rank, count) if last else []))
        rounds.append(Round(sent, num_bytes))
    return tally(topology, rounds)
