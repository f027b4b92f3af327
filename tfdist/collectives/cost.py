"""What a collective costs: counts of latencies, messages and bytes, inside a host and between hosts.

An algorithm's cost formula is a sum over rounds, as in the papers: in a round everybody sends what depends on earlier
rounds only. `tally` adds the rounds up for given hosts. What the counts mean in seconds is for `rates.py` to say.
"""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What passes inside the hosts, or between them. Each count is of the busiest rank or host.

    Args:
      latencies: messages of the longest chain in which each had to wait for the one before (times alpha, seconds).
      messages: messages that one rank sends or receives; a multicast in shared memory is sent once.
      bytes_sent: inside a host: bytes one rank sends; between hosts: bytes that leave one host, all of whose ranks
        share its link.
      bytes_received: likewise.
      bytes_reduced: bytes that one rank adds to its own (times gamma, seconds a byte).
    """

    latencies: int = 0
    messages: int = 0
    bytes_sent: float = 0.0
    bytes_received: float = 0.0
    bytes_reduced: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """The price of a collective: `Traffic` inside the hosts, and `Traffic` between them."""

    inside: Traffic
    between: Traffic


class Sent(NamedTuple):
    """What one rank sends in a round: to `adders`, who add it to their own, and to `keepers`, who store it."""

    sender: int
    adders: list = ()
    keepers: list = ()


class Round(NamedTuple):
    """What all ranks send in one round: `sent`, a list of `Sent`, each of `num_bytes` bytes in `num_chunks` messages."""

    sent: list
    num_bytes: float
    num_chunks: int = 1


def tally(topology, rounds):
    """Adds up rounds.

    Args:
      topology: a `Topology`.
      rounds: list of `Round`s, in order.

    Returns:
      A `Cost`, linear in the rounds' bytes. The longest chain is the one of most latencies between hosts, and of those the
      one of most inside.
    """
    inside_counts, between_counts = _Counts(topology.world_size), _Counts(topology.world_size)
    chains = [(0, 0)] * topology.world_size  # by rank: latencies between, latencies inside
    host_of = topology.host_of
    for round_ in rounds:
        before = list(chains)
        for sender, adders, keepers in round_.sent:
            staying = crossing = 0
            between, inside = before[sender]
            for receiver in (*adders, *keepers):
                crosses = host_of[sender] != host_of[receiver]
                crossing, staying = crossing + crosses, staying + (not crosses)
                (between_counts if crosses else inside_counts).receive(receiver, round_, receiver in adders)
                chains[receiver] = max(chains[receiver], (between + crosses, inside + (not crosses)))
            inside_counts.send(sender, round_, min(staying, 1) if topology.shared else staying)
            between_counts.send(sender, round_, crossing)
    between, inside = max(chains)
    ranks = [(rank,) for rank in range(topology.world_size)]
    return Cost(inside_counts.traffic(inside, ranks), between_counts.traffic(between, topology.hosts))


class _Counts:
    """Counts of one level, by rank."""

    def __init__(self, world_size):
        self._messages = [0] * world_size
        self._sent = [0.0] * world_size
        self._received = [0.0] * world_size
        self._reduced = [0.0] * world_size

    def send(self, rank, round_, copies):
        self._messages[rank] += copies * round_.num_chunks
        self._sent[rank] += copies * round_.num_bytes

    def receive(self, rank, round_, adds):
        self._messages[rank] += round_.num_chunks
        self._received[rank] += round_.num_bytes
        self._reduced[rank] += adds * round_.num_bytes

    def traffic(self, latencies, links):
        """`links`: the ranks that share each link."""
        return Traffic(
            latencies=latencies,
            messages=max(self._messages),
            bytes_sent=max(sum(self._sent[rank] for rank in link) for link in links),
            bytes_received=max(sum(self._received[rank] for rank in link) for link in links),
            bytes_reduced=max(self._reduced),
        )
