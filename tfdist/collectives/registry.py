"""The table of all-reduce algorithms and of the other collectives: one row each."""

import dataclasses
from collections.abc import Callable

from tfdist.collectives import (
    all_to_all,
    barrier,
    broadcast,
    direct,
    folding,
    halving_doubling,
    hierarchical,
    recursive_doubling,
    ring,
)


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A collective that the engine can be given.

    Args:
      steps: function of (rank, world_size, **options) that yields the rank's `Step`s.
      num_chunks: function of (world_size, **options): how many chunks the steps speak of.
      cost: function of (`Topology`, bytes) that returns the `Cost`; None where there is only one algorithm.
      needs_hosts: whether the steps take the option `hosts`.
    """

    steps: Callable
    num_chunks: Callable
    cost: Callable | None = None
    needs_hosts: bool = False

    def options(self, topology):
        """Returns the keyword arguments of `steps` and `num_chunks` for a `Topology`; all hashable."""
        return {"hosts": topology.hosts} if self.needs_hosts else {}


def _one_per_rank(world_size):
    return world_size


# The most predictable first: where `choose` sees no difference, it takes the first.
ALL_REDUCE = {
    "ring": Algorithm(ring.all_reduce, _one_per_rank, ring.cost),
    "direct": Algorithm(direct.all_reduce, _one_per_rank, direct.cost),
    "hierarchical": Algorithm(hierarchical.all_reduce, hierarchical.num_chunks, hierarchical.cost, needs_hosts=True),
    "halving_doubling": Algorithm(halving_doubling.all_reduce, folding.core_size, halving_doubling.cost),
    "recursive_doubling": Algorithm(recursive_doubling.all_reduce, lambda world_size: 1, recursive_doubling.cost),
}

# By collective; an all-reduce that nobody chose an algorithm for is the ring.
ALGORITHMS = {
    "all_reduce": ALL_REDUCE["ring"],
    "reduce_scatter": Algorithm(ring.reduce_scatter, _one_per_rank),
    "all_gather": Algorithm(ring.all_gather, _one_per_rank),
    "broadcast": Algorithm(broadcast.broadcast, lambda world_size, root=0: 1),
    "all_to_all": Algorithm(all_to_all.all_to_all, lambda world_size: 2 * world_size),
    "barrier": Algorithm(barrier.barrier, lambda world_size: 2),
}
