"""Which workers are lost, which take part, and which are still to be waited for."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Holder:
    """One life of a worker.

    Args:
      rank: int.
      incarnation: int, how often it has been restarted.
    """

    rank: int
    incarnation: int = 0

    def __str__(self):
        return f"{self.rank}.{self.incarnation}"


class Members:
    """Who is lost and who takes part.

    Args:
      lost, joined: dict of rank to the newest incarnation of which that is so.
      num_initial: int; ranks below it take part from the beginning.
    """

    def __init__(self, lost, joined, num_initial):
        self._lost, self._joined, self._num_initial = lost, joined, num_initial

    def is_lost(self, holder):
        return holder.incarnation <= self._lost.get(holder.rank, -1)

    def takes_part(self, rank):
        newest = self._joined.get(rank, 0 if rank < self._num_initial else -1)
        return newest > self._lost.get(rank, -1)

    def awaited(self, leases, me):
        """Returns the holders, but for `me`, that have batches to finish or have yet to begin."""
        beginners = [Holder(rank) for rank in range(self._num_initial) if Holder(rank) not in leases]
        at_work = [holder for holder, held in leases.items() if held]
        return [holder for holder in at_work + beginners if holder != me and not self.is_lost(holder)]
