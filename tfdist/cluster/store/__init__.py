"""The rendezvous store: a small dictionary that all processes of a job reach.

Rank 0 or the launcher serves it; the others find each other through it before the ring exists, and report to it
afterwards. It is for addresses and counters: it carries no gradients. One request costs one round trip.
"""

from tfdist.cluster.store.client import StoreClient, StoreTimeoutError
from tfdist.cluster.store.server import StoreServer

__all__ = ["StoreClient", "StoreServer", "StoreTimeoutError"]
