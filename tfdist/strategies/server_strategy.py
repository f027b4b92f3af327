"""What the strategies with parameter servers share: their connection, and one `ServerOptimizer` for each Keras optimizer."""

import atexit
import contextlib
import itertools
import weakref

import numpy as np
import tensorflow as tf

from tfdist import cluster
from tfdist.data import dealer, uneven
from tfdist.errors import ConfigurationError, TfdistError
from tfdist.parameter_server.client import NOT_FINITE, Options
from tfdist.staleness import weighting
from tfdist.strategies import hosting, initial_value
from tfdist.strategies.replica import AbstractReplicaStrategy

MODES = ("async", "bounded", "sync")
_STEP_WEIGHTS = 256
_numbers = itertools.count()  # strategies are made in the same order on all workers


class AbstractServerStrategy(AbstractReplicaStrategy):
    """A strategy whose parameters are kept and updated by servers.

    Args:
      group, seed, timeout, tls: see `RingAllReduceStrategy`.
      num_servers: int or None, see `tfdist.strategies.servers.connect`.
      server_replicas: 1 or 2, how many servers keep each part of the parameters.
      prefetch: None, 0 or 1; None decides by the mode and the number of hosts.
      not_finite: "raise" or "skip".
      sparse_updates: "keras" or "lazy".
      mode, staleness_bound, backup_workers, staleness_weighting, compensation: see `ParameterServerStrategy`.
    """

    uses_servers = True

    def __init__(self, mode, *, group, seed, timeout, tls, num_servers, prefetch, not_finite, sparse_updates,
                 server_replicas=1, staleness_bound=0, backup_workers=0, staleness_weighting="none", compensation=None):  # fmt: skip
        from tfdist.strategies import servers, setup

        setup.check_keras()
        _check("mode", mode, MODES)
        _check("prefetch", prefetch, (None, 0, 1))
        _check("not_finite", not_finite, ("raise", "skip"))
        _check("sparse_updates", sparse_updates, ("keras", "lazy"))
        weights = weighting.table(staleness_weighting, _STEP_WEIGHTS)
        group = setup.form_group(group, timeout, tls)
        super().__init__(group, seed=seed)
        self.mode = mode
        self.is_in_step = mode == "sync" and backup_workers == 0
        if mode == "sync" and backup_workers >= self.world_size and backup_workers > 0:
            raise ConfigurationError(
                "backup_workers is expected to be less than the number of workers. "
                f"Received: backup_workers={backup_workers}, {self.world_size} workers. Lower it, or start more workers."
            )
        self.prefetch = self._prefetch(prefetch, staleness_bound, bool(compensation))
        self.not_finite = NOT_FINITE[not_finite]
        self._options = Options(
            mode=mode,
            # A push whose answer is still under way makes a worker one step faster than the server knows.
            staleness_bound=max(0, staleness_bound - self.prefetch),
            backup_workers=backup_workers,
            step_weights=tuple(map(float, weights)),
            compensation=compensation.lambda0 if compensation else 0.0,
            compensation_decay=compensation.m if compensation and compensation.kind == "adaptive" else -1.0,
            is_lazy=sparse_updates == "lazy",
        )
        self._optimizers = weakref.WeakKeyDictionary()
        self._num_declared = 0
        self._number = next(_numbers)
        self._dealer = None
        self.client, self._stop_servers = servers.connect(group, num_servers, replicas=server_replicas)
        atexit.register(self.close)
        setup.prepare(self)

    def _prefetch(self, prefetch, staleness_bound, is_compensated):
        may = self.mode != "sync" and not (self.mode == "bounded" and staleness_bound == 0) and not is_compensated
        if prefetch and not may:
            raise ConfigurationError(
                "prefetch is expected to be 0 where the server relies on which parameters a worker has: in mode 'sync', with "
                f"staleness_bound=0 and with delay compensation. Received: prefetch=1, mode={self.mode!r}. Leave it out."
            )
        if prefetch is not None:
            return prefetch
        # Within a host an answer takes no time worth a staler gradient.
        return int(may and self.world_size > 1 and len(self.worker_group.topology.hosts) > 1)

    @property
    def num_gradients_of_update(self):
        return self.world_size if self.mode == "sync" else 1

    @property
    def options(self):
        """How servers update what this strategy declares, an `Options`."""
        return self._options

    def all_reduce(self, tensors, op="sum", **options):
        from tfdist.strategies import graph_bridge

        return graph_bridge.all_reduce(list(tensors), op, group=self.worker_group, **options)

    def broadcast(self, tensor, root=0, name=""):
        return initial_value.broadcast(self, tensor, root, name)

    def all_gather(self, tensor, name=""):
        from tfdist.strategies import graph_bridge

        return graph_bridge.all_gather(tensor, group=self.worker_group, name=name)

    def optimizer_of(self, optimizer, statistics=()):
        """Returns the `ServerOptimizer` of a built Keras optimizer; all workers declare it at the same place.

        Args:
          optimizer: a `keras.optimizers.Optimizer`.
          statistics: list of `tf.Variable`s, moving statistics that are kept with it.
        """
        from tfdist.strategies.server_optimizer import ServerOptimizer

        found = self._optimizers.get(optimizer)
        if found is None:
            with tf.init_scope():
                name = f"strategy {self._number}, optimizer {self._num_declared}"
                self._num_declared += 1
                found = self._optimizers[optimizer] = ServerOptimizer(self, optimizer, statistics, name)
                found.begin()
        return found

    def declared_optimizers(self, parts):
        """Returns what `join_optimizers` needs to know of the optimizers that a Keras optimizer consists of, for JSON."""
        return {"names": [self._optimizers[part].store.name for part in parts], "num_declared": self._num_declared}

    def join_optimizers(self, parts, names, num_declared, statistics):
        """Takes part in what other workers have declared, with the state that the servers have.

        Args:
          parts: list of built Keras optimizers.
          names, num_declared: see `declared_optimizers`.
          statistics: see `optimizer_of`.
        """
        from tfdist.strategies.server_optimizer import ServerOptimizer

        self._num_declared = num_declared
        for part, name in zip(parts, names, strict=True):
            self._optimizers[part] = ServerOptimizer(self, part, statistics, name)
            self._optimizers[part].join()
            statistics = []

    def known_optimizers(self, optimizer):
        """Returns the `ServerOptimizer`s of a Keras optimizer, none if the servers have not heard of it yet."""
        parts = hosting.parts_of(optimizer) if optimizer is not None else []
        return [self._optimizers[part] for part in parts if part in self._optimizers]

    def optimizers(self):
        """Returns all `ServerOptimizer`s."""
        return list(self._optimizers.values())

    def synchronize(self):
        """Waits for all workers, until every update is applied; then the variables of all hold the global parameters.

        The chief's optimizers hold the global state as well. `fit` does it at the end of every epoch. Call it in a training
        loop of your own before you evaluate or save, on every worker, and when the loop is over.
        """
        self.leave_epoch()
        for optimizer in self.optimizers():
            optimizer.pause()
        self.barrier("synchronize")
        for optimizer in self.optimizers():
            optimizer.fetch_parameters()
            if self.is_chief:
                optimizer.fetch_state()
        self.barrier("synchronized")
        for optimizer in self.optimizers():
            optimizer.resume()
        self.barrier("go on")

    def dealer(self):
        """Returns the `tfdist.data.dealer.Dealer` that hands out the pieces of an epoch, the same one at each call."""
        if self._dealer is None:
            name = f"strategy {self._number}"
            is_alone, watch = self.world_size == 1, self.worker_group.watch
            self._dealer = dealer.Dealer(1) if is_alone else dealer.for_job(cluster.current(), name, watch)
        return self._dealer

    def leave_epoch(self):
        """No worker that comes to the end of its data waits for this one's, which is about to wait for it."""
        if self._dealer is not None:
            self._dealer.leave()

    def batch_of_step(self, batch_size):
        """Returns the rows of one worker's step for `fit(batch_size=)`: all of it, unless workers are in step or nearly so."""
        return -(-batch_size // self.world_size) if self.mode == "sync" else batch_size

    def in_batches_of_step(self, dataset):
        """Returns a dataset of batches in batches of one worker's step."""
        return uneven.rebatch(dataset, self) if self.mode == "sync" else dataset

    def barrier(self, name):
        """Waits for all workers."""
        self.agree(name, {})

    def total(self, values):
        """Returns the sum of a float64 array over all workers."""
        return values if self.world_size == 1 else np.asarray(self.worker_group.all_reduce(values))

    def close(self):
        """Leaves the servers, and ends those that this worker has started."""
        atexit.unregister(self.close)
        with contextlib.suppress(AttributeError, TfdistError):
            self.leave_epoch()
        with contextlib.suppress(AttributeError):
            self.client.close()
            self._stop_servers()


def _check(name, value, known):
    if value not in known:
        raise ConfigurationError(
            f"{name} is expected to be one of {', '.join(map(repr, known))}. Received: {name}={value!r}. Correct it."
        )
