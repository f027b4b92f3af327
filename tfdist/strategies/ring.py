"""Synchronous training without a server: gradients are summed around a ring of workers."""

from tfdist.strategies import initial_value
from tfdist.strategies.replica import AbstractReplicaStrategy


class RingAllReduceStrategy(AbstractReplicaStrategy):
    """Trains one model on several workers, each on its share of every batch.

    Choose it where the workers are alike and the network between them is good; it is the default of tfdist. With m
    workers and step size eta,

        theta <- theta - eta / N * sum_i n_i g_i,    N = sum_i n_i

    where g_i is the mean gradient over worker i's n_i rows, so that the result is that of one process on the whole
    batch, whatever the shares are. One step sends 2 (P - 1) / P S bytes per worker, P workers, S bytes of gradients.

    `fit(batch_size=)` is the global batch. `fit`, `evaluate` and `predict` return the same on every worker.

    Args:
      group: a `tfdist.comm.Group`; default: the group of this process, formed from its environment.
      seed: int, the seed for the order of the data; default: taken from rank 0's Python random state, so that
        `keras.utils.set_random_seed` makes a run repeatable.
      timeout: seconds to wait for other workers in a collective; default: the group's.
      wire_dtype: None, or "bfloat16" or "float16": what float32 gradients travel as. Half the bytes; each partial sum is
        rounded once a hop and added in float32, and replicas stay bit-equal.
      algorithm: None, or the name of an all-reduce of `tfdist.collectives`, for every size; default: TFDIST_ALGORITHM, or
        the fastest for each size as measured when the group formed.
      tls: True to encrypt all connections of the job; every process says the same. A job of `tfdist run` has connections
        before its scripts begin: there it is `tfdist run --tls`. Default: as TFDIST_TLS says.
      bucket_bytes: int > 0, how many bytes of gradients travel together; default: from the measurement.

    Raises:
      ConfigurationError: if Keras runs on another backend than TensorFlow, or an argument makes no sense.
      RendezvousError: if the group did not form.

    Example:

    ```python
    strategy = tfdist.RingAllReduceStrategy()
    with strategy.scope():
        model = keras.Sequential([keras.layers.Dense(10)])
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=64)
    ```

    Reference: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009.
    """

    def __init__(self, group=None, *, seed=None, timeout=None, wire_dtype=None, algorithm=None, bucket_bytes=None,
                 tls=None):  # fmt: skip
        from tfdist.strategies import graph_bridge, setup

        setup.check_keras()
        self._settings = graph_bridge.Settings(algorithm, bucket_bytes)
        graph_bridge.check_wire_dtype(wire_dtype)
        self.wire_dtype = wire_dtype
        super().__init__(setup.form_group(group, timeout, tls), seed=seed)
        setup.prepare(self)

    def all_reduce(self, tensors, op="sum", **options):
        from tfdist.strategies import graph_bridge

        options["settings"] = self._settings
        return graph_bridge.all_reduce(list(tensors), op, group=self.worker_group, **options)

    def broadcast(self, tensor, root=0, name=""):
        return initial_value.broadcast(self, tensor, root, name)

    def all_gather(self, tensor, name=""):
        from tfdist.strategies import graph_bridge

        return graph_bridge.all_gather(tensor, group=self.worker_group, name=name)
