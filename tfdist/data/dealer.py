"""Who gets which batches of an epoch: whoever is free takes the next piece.

All workers know the same table of pieces (`pieces.py`). Each begins with the piece of its rank; a counter that they share is
all there is to agree on then: who raises it to n has taken the n-th of the others. Where a job goes on without workers that
are lost, pieces are taken on lease (`leases.py`).
"""

import collections
import itertools
import math
import os
import threading

from tfdist.cluster import variables
from tfdist.cluster.store import StoreClient
from tfdist.data.leases import Leases
from tfdist.data.pieces import piece, pieces


class Dealer:
    """Hands out the pieces of one data set after the other to this worker.

    Thread-safe. Blocks only as long as `take` does.

    Args:
      world_size: int, the number of workers that share the data.
      rank: int, this worker.
      take: callable `take(key) -> int` that raises the counter called `key` (a str), common to all workers, by one and
        returns what it was, 0 at first: see `StoreCounter`. Default: a counter of this process, for a single worker.
      name: str that no other dealer of the job has.
      leases: `tfdist.data.leases.Leases`, instead of `take`: what a lost worker has taken and not trained on is dealt again.
    """

    def __init__(self, world_size, rank=0, take=None, name="data", leases=None):
        self._world_size = world_size
        self._rank = rank
        self._take = take or ProcessCounter()
        self._name = name
        self._leases = leases
        self._deals = itertools.count()
        self._first_epoch = 0
        self._latest = None

    def go_to(self, data_set, epoch):
        """The next data set that is dealt is that of this number, and begins with this epoch, both ints from 0.

        For a worker that joins later than the others. A look at the first batch does not count.
        """
        self._deals = itertools.count(data_set)
        self._first_epoch = epoch

    def place(self):
        """Returns where the data set stands that was dealt last: its number, and that of its next epoch (a look counts)."""
        return self._latest.data_set, self._latest.next_epoch

    def catch_up(self, data_set, epoch):
        """Goes on with the data set that was dealt last as a worker does whose `place` is this; returns how many epochs that skips."""
        self._deals = itertools.count(data_set + 1)
        skipped = epoch - self._latest.next_epoch
        self._latest.data_set, self._latest.next_epoch = data_set, epoch
        return skipped

    def leave(self):
        """Nobody shall wait for what this worker has not finished: it ends an epoch early, or waits for others itself."""
        if self._leases is not None:
            self._leases.leave()

    def deal(self, num_batches, look_first=False, is_stream=False):
        """Begins to deal a data set. All workers must do so for the same ones in the same order.

        Args:
          num_batches: int, batches of an epoch, or None where that is not known.
          look_first: whether the first epoch is none, but a look at the first batch: a Keras trainer takes one to see
            its shapes and starts over.
          is_stream: whether this worker comes by the batches in their order only: what others leave behind is lost then.

        Returns:
          A `Deal`.
        """
        table = None if num_batches is None else pieces(num_batches, self._world_size)
        first_epoch, self._first_epoch = self._first_epoch, 0

        def open_epoch(data_set, epoch):
            name = f"{self._name}/{data_set}/{epoch}"
            if self._leases is not None:
                return self._leases.open(name, table, is_stream)
            return CountedEpoch(table, self._rank, lambda: self._world_size + self._take(name))

        looks = None if not look_first else [] if table == [] else [(0, 1)]
        self._latest = Deal(open_epoch, next(self._deals), looks, first_epoch, is_leased=self._leases is not None)
        return self._latest


def for_job(cluster, name, watch):
    """Returns the dealer of a worker: with leases where the job goes on without workers that are lost.

    Args:
      cluster: a `tfdist.cluster.Cluster` of several workers.
      name: str that no other dealer of the job has.
      watch: see `Leases`.
    """
    if not variables.recover(os.environ, default=False):
        return Dealer(cluster.world_size, cluster.rank, StoreCounter(cluster), name)
    num_initial = variables.initial_workers(os.environ, cluster.world_size)
    leases = Leases(cluster, variables.incarnation(os.environ), num_initial, watch)
    return Dealer(cluster.world_size, cluster.rank, name=name, leases=leases)


class Deal:
    """One data set being dealt, epoch after epoch. Made by `Dealer.deal`; thread-safe.

    Args:
      open_epoch: callable that takes the numbers of a data set and of an epoch and returns a `CountedEpoch` or the like.
      data_set: int, the number of this one.
      looks: list of pieces of the first epoch, which is only a look; None: it is one like the others.
      first_epoch: int, the number of the first epoch that is no look, where the epochs that are none count from 0.
      is_leased: whether `finished` and `rest` are to be called.
    """

    def __init__(self, open_epoch, data_set, looks, first_epoch, is_leased):
        self._open_epoch = open_epoch
        self.data_set = data_set
        self._open = {}
        self._unfinished = []  # those of which nobody has said that this worker is done with them
        self._lock = threading.Lock()  # the two above, and the count of epochs
        self._looks = looks
        self._look_epoch = None if looks is None else 0
        self._first = first_epoch + (looks is not None)
        self.next_epoch = self._first if looks is None else 0
        self.is_leased = is_leased

    def begin(self):
        """Returns the number of the next epoch, from 0, and leaves those before. A look at the first batch counts as one."""
        with self._lock:
            left, self._unfinished = self._unfinished, []
            number, self.next_epoch = self.next_epoch, max(self._first, self.next_epoch + 1)
        for epoch in left:
            epoch.leave()
        return number

    def next_piece(self, epoch):
        """Takes a piece of an epoch.

        Returns:
          `(first batch, number of batches)`; the number is 0 when nothing is left. Where the length of an epoch is not
          known that is never so, and pieces may lie beyond the end.
        """
        if epoch == self._look_epoch:
            return self._looks.pop() if self._looks else (0, 0)
        return self._epoch(epoch).take()

    def finished(self, epoch, num_batches):
        """Notes that the first `num_batches` of what this worker took of an epoch have been trained on.

        Returns:
          float, the `time.time()` from which on it is worth being called again.
        """
        return math.inf if epoch == self._look_epoch else self._epoch(epoch).finished(num_batches)

    def rest(self, epoch):
        """Takes a batch that others have left behind, once this worker has trained on all that it took.

        Returns:
          `(batch, 1)`, or `(0, 0)` when nobody can leave anything behind any more: blocks until then.
        """
        return (0, 0) if epoch == self._look_epoch else self._epoch(epoch).rest()

    def _epoch(self, number):
        with self._lock:
            if number not in self._open:
                self._open[number] = self._open_epoch(self.data_set, number)
                self._unfinished.append(self._open[number])
            return self._open[number]


class CountedEpoch:
    """An epoch of which every worker takes pieces for good.

    Args:
      table: list of pieces, or None where the length of an epoch is not known.
      first: int, the piece with which this worker begins: nobody goes away empty-handed.
      take: callable that returns the number of a further piece.
    """

    def __init__(self, table, first, take):
        self._table = table
        self._first = first
        self._take = take

    def take(self):
        """Returns the next piece; see `Deal.next_piece`."""
        number, self._first = self._first, None
        return piece(self._table, self._take() if number is None else number)

    def leave(self):
        """Nobody waits for anybody."""


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
