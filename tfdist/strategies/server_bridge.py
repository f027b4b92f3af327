"""The one way from a TensorFlow graph to the parameter servers: an exchange of gradients for parameters, and rows by index."""

import tensorflow as tf

from tfdist.comm.failures import translated
from tfdist.comm.tensorflow_library import operations


class Message:
    """What one step pushes and pulls, in one operation.

    Args:
      strategy: the strategy, for client and mode.
      store: the `ClientStore`.
    """

    def __init__(self, strategy, store):
        self._strategy = strategy
        self._store = store
        self._dense = []  # (position, gradient, current)
        self._rows = []  # (position, slices, current or None)

    def add_dense(self, position, gradient, current):
        """Adds a tensor's gradient; `current`: the variable, or its value, as the servers sent it last."""
        self._dense.append((position, gradient, current))

    def add_rows(self, position, slices, current, *, is_whole):
        """Adds a `tf.IndexedSlices`; with `is_whole` the whole tensor is pulled, otherwise nothing of it."""
        self._rows.append((position, slices, current if is_whole else None))

    def exchange(self, learning_rate, weight, is_sum, not_finite):
        """Makes the operation.

        Args:
          learning_rate, weight: scalars.
          is_sum: bool, gradients of several workers are added, not averaged.
          not_finite: int, see `tfdist.parameter_server.client.NOT_FINITE`.

        Returns:
          `(fresh, updates)`: the parameters by position, and an int64 scalar, how many updates they have seen.
        """
        prefetch, offers = self._strategy.prefetch, self._strategy.client.recovers
        whole = [(position, current) for position, _, current in self._rows if current is not None]
        dense = [gradient for _, gradient, _ in self._dense]
        values = [tf.convert_to_tensor(current) for _, current in whole]
        current = [tf.convert_to_tensor(current) for _, _, current in self._dense] if prefetch or offers else []
        results = _call(
            operations().tfdist_exchange,
            dense=dense,
            current=current,
            row_indices=[tf.cast(slices.indices, tf.int64) for _, slices, _ in self._rows],
            row_values=[slices.values for _, slices, _ in self._rows],
            whole=values,
            learning_rate=tf.cast(learning_rate, tf.float64),
            weight=tf.cast(weight, tf.float64),
            client=self._strategy.client.id,
            store=self._store.id,
            tensors=[position for position, _, _ in self._dense],
            row_tensors=[position for position, _, _ in self._rows],
            whole_tensors=[position for position, _ in whole],
            is_sum=int(is_sum),
            prefetch=int(prefetch),
            is_synchronous=int(self._strategy.mode == "sync"),
            not_finite=not_finite,
            offers=int(offers),
        )
        fresh = {}
        for (position, gradient, _), value in zip(self._dense, results.fresh):
            fresh[position] = _shaped(value, gradient)
        for (position, _), value, like in zip(whole, results.fresh_whole, values):
            fresh[position] = _shaped(value, like)
        if not tf.executing_eagerly():
            results.updates.set_shape([])
        return fresh, results.updates


def pull_rows(strategy, store, position, indices, shape, dtype):
    """Returns the rows `indices` (1-D) of a tensor of a store as the servers have them now."""
    rows = _call(
        operations().tfdist_pull_rows,
        indices=tf.cast(indices, tf.int64),
        T=dtype,
        client=strategy.client.id,
        store=store.id,
        tensor=position,
        row_shape=list(shape[1:]),
        item_bytes=dtype.size,
    )
    return rows if tf.executing_eagerly() else tf.ensure_shape(rows, [None, *shape[1:]])


def _shaped(value, like):
    if not tf.executing_eagerly():
        value.set_shape(like.shape)
    return value


def _call(operation, **arguments):
    """Calls an operation; where it runs at once, its failure comes as an exception of tfdist."""
    if not tf.executing_eagerly():
        return operation(**arguments)
    with translated():
        return operation(**arguments)
