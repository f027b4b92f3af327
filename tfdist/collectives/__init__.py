"""Collective algorithms as plans: pure Python, no I/O. Each file is one idea; README.md says how to add one."""

import dataclasses
from collections.abc import Callable

from tfdist.collectives import all_to_all, barrier, broadcast, ring
from tfdist.collectives.plan import Cost, Kind, PlanError, Step, interpret

__all__ = ["Algorithm", "ALGORITHMS", "Cost", "Kind", "PlanError", "Step", "interpret"]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """A collective that the engine can be given.

    Args:
      steps: function of (rank, world_size, **options) that yields the rank's `Step`s.
      num_chunks: function of world_size: how many chunks the steps speak of.
    """

    steps: Callable
    num_chunks: Callable


ALGORITHMS = {
    "all_reduce": Algorithm(ring.all_reduce, lambda world_size: world_size),
    "reduce_scatter": Algorithm(ring.reduce_scatter, lambda world_size: world_size),
    "all_gather": Algorithm(ring.all_gather, lambda world_size: world_size),
    "broadcast": Algorithm(broadcast.broadcast, lambda world_size: 1),
    "all_to_all": Algorithm(all_to_all.all_to_all, lambda world_size: 2 * world_size),
    "barrier": Algorithm(barrier.barrier, lambda world_size: 2),
}
