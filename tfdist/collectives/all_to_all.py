"""All-to-all by pairwise exchange: in round s every rank sends to the rank s behind it and hears from the rank s ahead.

Costs S (P-1)/P bytes sent per rank and P - 1 messages; no rank is addressed by two others in the same round.
"""

from tfdist.collectives.plan import copy, receive, send


def all_to_all(rank, world_size):
    """Chunk j goes to rank j; chunk P + j ends as what rank j had for this one."""
    yield copy(world_size + rank, rank)
    for distance in range(1, world_size):
        target, source = (rank + distance) % world_size, (rank - distance) % world_size
        yield send(target, target)
        yield receive(world_size + source, source)
