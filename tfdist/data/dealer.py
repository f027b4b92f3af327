"""Who gets which batches of an epoch: whoever is free takes the next piece.

A piece is a run of consecutive batches. All workers know the same table of pieces. Each begins with the piece of its rank;
a counter that they share is all there is to agree on then: who raises it to n has taken the n-th of the others. Pieces shrink as the epoch goes on, which needs few requests
and lets all workers end within about one batch of each other (guided self-scheduling: Polychronopoulos and Kuck, "Guided
Self-Scheduling", IEEE Transactions on Computers C-36, 1987).
"""

import collections
import itertools
import threading

from tfdist.cluster.store import StoreClient

# Guided self-scheduling takes a fraction 1/P of what is left. A worker 8 times slower than the others must not hold more
# than its share with its first piece already.
_FRACTION = 8
_MOST_BATCHES = 16
_BATCHES_OF_UNKNOWN = 2  # where the length of the epoch is not known


def pieces(num_batches, world_size):
    """Returns the table of pieces, the same on all workers.

    One of P workers takes `ceil(remaining / (8 * P))` batches, from 1 to 16: about `8 * P * ln(N / (8 * P))` pieces for
    the first `N - 8 * P` batches and one for each of the others.

    Args:
      num_batches: int >= 0, of an epoch.
      world_size: int >= 1.

    Returns:
      A list of `(first batch, number of batches)` that covers `0 .. num_batches - 1` in order.
    """
    table, first = [], 0
    while first < num_batches:
        count = min(_MOST_BATCHES, -(-(num_batches - first) // (_FRACTION * world_size)))
        table.append((first, count))
        first += count
    return table


class Dealer:
    """Hands out the pieces of one data set after the other to this worker.

    Thread-safe. Blocks only as long as `take` does.

    Args:
      world_size: int, the number of workers that share the data.
      rank: int, this worker.
      take: callable `take(key) -> int` that raises the counter called `key` (a str), common to all workers, by one and
        returns what it was, 0 at first: see `StoreCounter`. Default: a counter of this process, for a single worker.
      name: str that no other dealer of the job has.
    """

    def __init__(self, world_size, rank=0, take=None, name="data"):
        self._world_size = world_size
        self._rank = rank
        self._take = take or ProcessCounter()
        self._name = name
        self._deals = itertools.count()

    def deal(self, num_batches, look_first=False):
        """Begins to deal a data set. All workers must do so for the same ones in the same order.

        Args:
          num_batches: int, batches of an epoch, or None where that is not known.
          look_first: whether the first epoch is none, but a look at the first batch: a Keras trainer takes one to see
            its shapes and starts over.

        Returns:
          A `Deal`.
        """
        name = f"{self._name}/{next(self._deals)}"
        table = None if num_batches is None else pieces(num_batches, self._world_size)
        return Deal(table, self._rank, lambda epoch: self._world_size + self._take(f"{name}/{epoch}"), look_first)


class Deal:
    """One data set being dealt, epoch after epoch. Made by `Dealer.deal`; thread-safe.

    Args:
      table: list of pieces, or None where the length of an epoch is not known.
      first: int, the piece with which this worker begins every epoch: nobody goes away empty-handed.
      take: callable `take(epoch) -> int`, a further piece.
      look_first: see `Dealer.deal`.
    """

    def __init__(self, table, first, take, look_first):
        self._table = table
        self._first = first
        self._begun = set()
        self._take = take
        self._epochs = itertools.count()
        self._looks = [(0, 1)] if look_first and table != [] else []
        self._look_epoch = 0 if look_first else None

    def begin(self):
        """Returns the number of the next epoch, from 0. A look at the first batch counts as one."""
        return next(self._epochs)

    def next_piece(self, epoch):
        """Takes a piece of an epoch.

        Returns:
          `(first batch, number of batches)`; the number is 0 when nothing is left. Where the length of an epoch is not
          known that is never so, and pieces may lie beyond the end.
        """
        if epoch == self._look_epoch:
            return self._looks.pop() if self._looks else (0, 0)
        if epoch in self._begun:
            number = self._take(epoch)
        else:
            self._begun.add(epoch)
            number = self._first
        if self._table is None:
            return number * _BATCHES_OF_UNKNOWN, _BATCHES_OF_UNKNOWN
        return self._table[number] if number < len(self._table) else (0, 0)


class ProcessCounter:
    """Counters of this process, by name: `counter(key)` returns 0, 1, 2... Thread-safe."""

    def __init__(self):
        self._counts = collections.defaultdict(itertools.count)
        self._lock = threading.Lock()  # the dictionary

    def __call__(self, key):
        with self._lock:
            return next(self._counts[key])


class StoreCounter:
    """Counters in the job's store, by name: `counter(key)` returns 0, 1, 2..., over all workers.

    Connects when first called. Thread-safe; a call costs a round trip.

    Args:
      cluster: a `tfdist.cluster.Cluster` with a store.

    Raises (when called):
      RendezvousError, TransportError, AuthenticationError: see `StoreClient`.
    """

    def __init__(self, cluster):
        self._cluster = cluster
        self._client = None
        self._lock = threading.Lock()  # the making of the client

    def __call__(self, key):
        with self._lock:
            if self._client is None:
                self._client = StoreClient(self._cluster.store_address, self._cluster.secret)
        return self._client.add(f"dealt/{key}", 1) - 1

    def close(self):
        """Closes the connection; the next call makes another."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()
