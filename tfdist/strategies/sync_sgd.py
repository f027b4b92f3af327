"""Synchronous SGD through a parameter server."""

from tfdist.strategies.parameter_server import check_counts
from tfdist.strategies.server_strategy import AbstractServerStrategy


class SyncSGDStrategy(AbstractServerStrategy):
    """Trains one model on several workers in step, summing gradients on servers.

    The rule of `RingAllReduceStrategy`,

        theta <- theta - eta / N * sum_i n_i g_i,    N = sum_i n_i

    in its seven steps: split the batch, initialise all alike, compute local gradients, aggregate them on the server, update the
    parameters there, send them out, repeat. Choose it as a baseline, or with `backup_workers` where some workers are now and
    then slow: a step then takes the first m - backup_workers gradients and drops those that come too late.

    It is `ParameterServerStrategy(mode="sync")`: see there for the other arguments and the cost. With `backup_workers=0`
    N workers give the weights, metrics and logs of one process, and `fit(batch_size=)` is the global batch. With backup
    workers it still is, but workers take their batches, each a share of that size, whenever they are free.

    Args:
      backup_workers: int >= 0 and less than the number of workers.

    References: Chen et al., "Revisiting distributed synchronous SGD", 2016.
    """

    def __init__(self, backup_workers=0, *, num_servers=None, sparse_updates="keras", not_finite="raise",
                 server_replicas=1, group=None, seed=None, timeout=None, tls=None):  # fmt: skip
        check_counts("sync", None, backup_workers, num_servers)
        super().__init__(
            "sync",
            num_servers=num_servers,
            server_replicas=server_replicas,
            backup_workers=backup_workers,
            prefetch=0,
            sparse_updates=sparse_updates,
            not_finite=not_finite,
            group=group,
            seed=seed,
            timeout=timeout,
            tls=tls,
        )
