"""Halving-doubling: swap halves, then quarters, ...; then the same way back. Few latencies and the ring's bytes.

Rabenseifner, "Optimization of collective reduction operations" (2004): a reduce-scatter by recursive vector halving
and distance doubling, then an all-gather by vector doubling and distance halving. Nearest partners swap most, so that with
neighbouring ranks on one host little crosses to another. Each chunk is completed by one rank and then copied: all ranks
end with the same bits. For the extra ranks of a P that is no power of two see `folding.py`.
"""

from tfdist.collectives.cost import Round, Sent, tally
from tfdist.collectives.folding import core_ranks, distances, extras
from tfdist.collectives.plan import receive, receive_reduce, receive_reduce_last, send


def all_reduce(rank, world_size):
    """One chunk per core rank (`core_size`). For P = 2^k: 2 k latencies, 2 S (P-1)/P bytes sent, half of it reduced."""
    core = core_ranks(world_size)
    if rank not in core:
        yield from _extra(rank, core)
        return
    position = core.index(rank)
    for extra in extras(rank, world_size):
        for chunk in range(len(core)):
            yield receive_reduce(chunk, extra)
    for distance in distances(world_size):
        yield from _halve(position, distance, core)
    for distance in reversed(distances(world_size)):
        yield from _double(position, distance, core, world_size)


def held(position, distance, size):
    """Returns the chunks that the core rank at `position` still answers for after the exchange at `distance`."""
    low, length = 0, size
    for bit in range(distance.bit_length()):
        length //= 2
        if position >> bit & 1:
            low += length
    return range(low, low + length)


def _halve(position, distance, core):
    partner, last = position ^ distance, 2 * distance == len(core)
    for chunk in held(partner, distance, len(core)):
        yield send(chunk, core[partner])
    for chunk in held(position, distance, len(core)):
        yield receive_reduce_last(chunk, core[partner]) if last else receive_reduce(chunk, core[partner])


def _double(position, distance, core, world_size):
    rank, partner = core[position], core[position ^ distance]
    listeners = extras(partner, world_size)
    if 2 * distance == len(core):  # the chunk that was completed here; all others the own extra hears from elsewhere
        listeners = listeners + extras(rank, world_size)
    for chunk in held(position, distance, len(core)):
        for peer in [partner, *listeners]:
            yield send(chunk, peer)
    for chunk in held(position ^ distance, distance, len(core)):
        yield receive(chunk, partner)


def _extra(rank, core):
    """Gives its array to the rank before it, then hears what that rank hears on the way back."""
    neighbour, size = rank - 1, len(core)
    position = core.index(neighbour)
    for chunk in range(size):
        yield send(chunk, neighbour)
    for chunk in held(position, size // 2, size):
        yield receive(chunk, neighbour)
    for distance in reversed(distances(size)):
        for chunk in held(position ^ distance, distance, size):
            yield receive(chunk, core[position ^ distance])


def cost(topology, num_bytes):
    """2 log2 P latencies, 2 S (P-1)/P bytes sent, half of it reduced (Rabenseifner 2004); with extras a latency and S more."""
    count, core = topology.world_size, core_ranks(topology.world_size)
    rounds = [
        Round([Sent(extra, adders=[rank]) for rank in core for extra in extras(rank, count)], num_bytes, len(core))
    ]
    for distance in distances(count):
        sent = [Sent(rank, adders=[core[position ^ distance]]) for position, rank in enumerate(core)]
        rounds.append(_round(sent, distance, core, num_bytes))
    for distance in reversed(distances(count)):
        sent = []
        for position, rank in enumerate(core):
            partner = core[position ^ distance]
            own = extras(rank, count) if 2 * distance == len(core) else []
            sent.append(Sent(rank, keepers=[partner, *extras(partner, count), *own]))
        rounds.append(_round(sent, distance, core, num_bytes))
    return tally(topology, rounds)


def _round(sent, distance, core, num_bytes):
    num_chunks = len(core) // (2 * distance)
    return Round(sent, num_bytes * num_chunks / len(core), num_chunks)
