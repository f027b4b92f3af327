"""Who holds which batches of an epoch: what a worker that is lost leaves behind is dealt again at once.

In the job's store stand, for each epoch `<e>` (`dealt/<dealer>/<data set>/<epoch>`),

    <e>                            a counter, of the pieces taken beside those with which the workers begin
    <e>/first/<rank>               a counter: who raises it to 1 has taken the piece with which that worker begins
    <e>/held/<rank>.<i>            the lease of its i-th incarnation, "12-16 p9": batches and pieces taken and not finished
    <e>/again/<rank>.<i>/<batch>   a counter: who raises it to 1 takes that batch of a lease whose holder is lost
    <e>/done/<rank>.<i>            set when that worker holds nothing and finds nothing to take

A counter is raised and the lease written in one step of the store, so nothing is taken without a record. `elastic/dead/<rank>`
holds the newest incarnation that is lost, `elastic/excluded/<rank>` that which the others go on without though it may live, and
`elastic/joined/<rank>` one that has joined later.
"""

import threading

from tfdist.cluster import lives
from tfdist.cluster.store import StoreClient
from tfdist.data.holders import Holder, Members
from tfdist.data.leased_epoch import LeasedEpoch

_DEFAULT_TIMEOUT_SECONDS = 600.0


class Leases:
    """The leases of this worker.

    Thread-safe. Connects when first used.

    Args:
      cluster: a `tfdist.cluster.Cluster` with a store.
      incarnation: int, how often this worker has been restarted.
      num_initial: int, how many workers the job began with; None: all of `cluster`.
      watch: called with seconds again and again while one waits for others: who falls silent meanwhile shall be lost.
    """

    def __init__(self, cluster, incarnation=0, num_initial=None, watch=lambda seconds: None):
        self.watch = watch
        self.me = Holder(cluster.rank, incarnation)
        self.world_size = cluster.world_size
        self.timeout = cluster.timeout or _DEFAULT_TIMEOUT_SECONDS
        self._num_initial = cluster.world_size if num_initial is None else num_initial
        self._cluster = cluster
        self._clients = {}
        self._open = []
        self._lock = threading.Lock()  # the two above

    def open(self, name, table, is_stream):
        """Returns a `LeasedEpoch`.

        Args:
          name: str that it has on all workers.
          table: the table of its pieces, or None where the length is not known.
          is_stream: whether batches are taken in their order only.
        """
        epoch = LeasedEpoch(self, f"dealt/{name}", table, is_stream)
        with self._lock:
            self._open.append(epoch)
        return epoch

    def leave(self):
        """Nobody shall wait for what this worker has not finished of the epochs that it has begun."""
        with self._lock:
            epochs, self._open = self._open, []
        for epoch in epochs:
            epoch.leave()

    def client(self, purpose="ask"):
        """Returns the `StoreClient` for a purpose: one that waits would hold up the others."""
        with self._lock:
            if purpose not in self._clients:
                self._clients[purpose] = StoreClient(self._cluster.store_address, self._cluster.secret)
            return self._clients[purpose]

    def members(self):
        """Returns the `Members` of now."""
        dead, excluded, joined = (
            lives.incarnations(self.client().items(prefix)) for prefix in (lives.DEAD, lives.EXCLUDED, lives.JOINED)
        )
        lost = {rank: max(dead.get(rank, -1), excluded.get(rank, -1)) for rank in dead | excluded}
        return Members(lost, joined, self._num_initial)

    def close(self):
        """Leaves every epoch and closes the connections."""
        self.leave()
        with self._lock:
            clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()
