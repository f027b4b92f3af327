"""Hierarchical: reduce inside each host, between the hosts only what must cross, then hand it out inside.

Each host reduces its ranks' arrays into shares, one per local rank (as in `direct.py`); a ring per share runs between
the hosts over the ranks of equal position; the results are handed out inside. A host's link carries 2 S (H-1)/H bytes
each way, however many ranks it has: the least possible. As in Cho, Finkler, Serrano, Kung & Hunter, "BlueConnect:
decomposing all-reduce for deep learning on heterogeneous network hierarchy" (2019). Each chunk is completed by one rank and
then copied: all ranks end with the same bits.

Hosts of unequal size: there are as many shares as the largest host has ranks; in a smaller one some ranks own several.
"""

from tfdist.collectives import ring
from tfdist.collectives.cost import Round, Sent, tally
from tfdist.collectives.direct import gather_from_owners, reduce_to_owners


def all_reduce(rank, world_size, hosts=None):
    """L H chunks for H hosts of at most L ranks; chunk p H + j is the j-th part of share p.

    Args:
      rank: int in [0, world_size).
      world_size: int >= 1.
      hosts: tuple of tuples: the ranks of each host. None: one host.
    """
    hosts = hosts or (tuple(range(world_size)),)
    here = next(number for number, host in enumerate(hosts) if rank in host)
    index = hosts[here].index(rank)
    owned = [_chunks(here, place, hosts) for place in range(len(hosts[here]))]
    yield from reduce_to_owners(index, hosts[here], owned, complete=len(hosts) == 1)
    rings = [_between_hosts(share, here, hosts) for share in shares(here, index, hosts)]
    for steps in zip(*rings):  # side by side, so that no share waits for another's last hop
        yield from steps
    yield from gather_from_owners(index, hosts[here], owned)


def num_chunks(world_size, hosts=None):
    """Returns how many chunks `all_reduce` speaks of."""
    hosts = hosts or (tuple(range(world_size)),)
    return num_shares(hosts) * len(hosts)


def cost(topology, num_bytes):
    """2 latencies inside, 2 (H-1) between; per host 2 S (H-1)/H bytes each way, per rank about S (L-1)/L inside each way."""
    hosts, count = topology.hosts, len(topology.hosts)
    owners = [[host[share % len(host)] for host in hosts] for share in range(num_shares(hosts))]
    local = [(owner, host) for by_host in owners for owner, host in zip(by_host, hosts)]
    to_owners = [Sent(rank, adders=[owner]) for owner, host in local for rank in host if rank != owner]
    from_owners = [Sent(owner, keepers=[rank for rank in host if rank != owner]) for owner, host in local]
    hops = [(by_host[here], [by_host[(here + 1) % count]]) for by_host in owners for here in range(count)]
    reducing, copying = (
        [Sent(rank, adders=peer) for rank, peer in hops],
        [Sent(rank, keepers=peer) for rank, peer in hops],
    )
    share, part = num_bytes / len(owners), num_bytes / len(owners) / count
    rounds = [Round(to_owners, share, count)]
    rounds += [Round(reducing, part)] * (count - 1) + [Round(copying, part)] * (count - 1)
    return tally(topology, [*rounds, Round(from_owners, share, count)])


def num_shares(hosts):
    """Returns L, the size of the largest host."""
    return max(len(host) for host in hosts)


def shares(host, place, hosts):
    """Returns the shares that the rank at `place` of host number `host` owns."""
    return range(place, num_shares(hosts), len(hosts[host]))


def _chunks(here, place, hosts):
    """The chunks a rank of this host owns, in the order in which the ring between the hosts completes them."""
    count = len(hosts)
    return [share * count + (here - hop) % count for share in shares(here, place, hosts) for hop in range(count)]


def _between_hosts(share, here, hosts):
    """The steps of this host in the ring over the owners of `share`."""
    owners = [host[share % len(host)] for host in hosts]
    for step in ring.all_reduce(here, len(hosts)):
        yield type(step)(step.kind, share * len(hosts) + step.chunk, owners[step.peer])
