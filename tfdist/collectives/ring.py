"""Ring algorithms: bandwidth-optimal, P - 1 hops around the ring for each half.

Patarasuk & Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009), section 3. Each chunk
travels once around the ring and is summed on the way, always in the same order, so all ranks end with the same bits.
"""

from tfdist.collectives.cost import Round, Sent, tally
from tfdist.collectives.plan import receive, receive_reduce, receive_reduce_last, send


def reduce_scatter(rank, world_size):
    """Rank r ends with chunk r reduced over all ranks. Costs S (P-1)/P bytes sent and reduced per rank."""
    following, previous = (rank + 1) % world_size, (rank - 1) % world_size
    for hop in range(1, world_size):
        reduce = receive_reduce_last if hop == world_size - 1 else receive_reduce
        yield send((rank - hop) % world_size, following)
        yield reduce((rank - hop - 1) % world_size, previous)


def all_gather(rank, world_size):
    """Rank r starts with chunk r and ends with all of them. Costs S (P-1)/P bytes sent per rank."""
    following, previous = (rank + 1) % world_size, (rank - 1) % world_size
    for hop in range(world_size - 1):
        yield send((rank - hop) % world_size, following)
        yield receive((rank - hop - 1) % world_size, previous)


def all_reduce(rank, world_size):
    """Reduce-scatter, then all-gather. Costs 2 S (P-1)/P bytes sent per rank, the least possible."""
    yield from reduce_scatter(rank, world_size)
    yield from all_gather(rank, world_size)


def cost(topology, num_bytes):
    """2 (P-1) latencies; 2 S (P-1)/P bytes sent and half of it reduced (Patarasuk & Yuan 2009)."""
    count = topology.world_size
    pairs = [(rank, [(rank + 1) % count]) for rank in range(count)]
    reducing = Round([Sent(sender, adders=receivers) for sender, receivers in pairs], num_bytes / count)
    copying = Round([Sent(sender, keepers=receivers) for sender, receivers in pairs], num_bytes / count)
    return tally(topology, [reducing] * (count - 1) + [copying] * (count - 1))
