"""Which ranks share a host: all that an algorithm and its cost need to know about the machines."""

import dataclasses
import functools

from tfdist.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Topology:
    """The ranks of a group, host by host. Equal topologies compare and hash equal.

    Args:
      hosts: the ranks of each host, a sequence of sequences that together hold 0 .. P - 1 once each.
      shared: bool; whether the ranks of one host share memory, so that what is written once can be read by many.

    Raises:
      ConfigurationError: a rank is missing or stands twice, or a host is empty.
    """

    hosts: tuple
    shared: bool = True

    def __post_init__(self):
        hosts = tuple(tuple(host) for host in self.hosts)
        object.__setattr__(self, "hosts", hosts)
        ranks = sorted(rank for host in hosts for rank in host)
        if not ranks or ranks != list(range(len(ranks))) or not all(hosts):
            raise ConfigurationError(
                f"hosts is expected to hold every rank from 0 on exactly once, and no empty host. Received: hosts={hosts}. "
                "List the ranks of each host, e.g. ((0, 1), (2, 3))."
            )

    @functools.cached_property
    def world_size(self):
        """The number of ranks, P."""
        return sum(map(len, self.hosts))

    @functools.cached_property
    def host_of(self):
        """A tuple: the number of each rank's host."""
        return tuple(number for _, number in sorted((rank, n) for n, host in enumerate(self.hosts) for rank in host))
