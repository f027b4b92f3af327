"""A job without training: a store, and dealers of workers that take pieces on lease."""

import threading

from tfdist.cluster import Cluster
from tfdist.cluster.store import StoreClient, StoreServer
from tfdist.data import dealer
from tfdist.data.leases import Leases

SECRET = b"secret" * 6


class Job:
    """A store, and who deals from it.

    Args:
      world_size: int.
      num_initial: int or None, how many workers it begins with.
      timeout: float seconds that one waits for the others at the end.
    """

    def __init__(self, world_size, num_initial=None, timeout=30.0):
        self.server = StoreServer(secret=SECRET)
        self.client = StoreClient(self.server.address, SECRET)
        self._world_size, self._num_initial, self._timeout = world_size, num_initial, timeout
        self._leases = []

    def dealer(self, rank, incarnation=0):
        place = Cluster(
            rank=rank,
            world_size=self._world_size,
            store_address=self.server.address,
            secret=SECRET,
            timeout=self._timeout,
        )
        self._leases.append(Leases(place, incarnation, self._num_initial))
        return dealer.Dealer(self._world_size, rank, leases=self._leases[-1])

    def lose(self, rank, incarnation=0):
        self.client.set(f"elastic/dead/{rank}", str(incarnation).encode())

    def close(self):
        for leases in self._leases:
            leases.close()
        self.client.close()
        self.server.close()


def together(*bodies):
    """Runs the callables on a thread each; returns what they return."""
    results = [None] * len(bodies)

    def run(number):
        results[number] = bodies[number]()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a worker waits for ever"
    return results
