"""Collectives that a replica function calls by itself, with the right gradient where batches are uneven."""

import tensorflow as tf

from tfdist.strategies import step as replica_step


class WeightedReplicaContext(tf.distribute.ReplicaContext):
    """A replica context whose `all_reduce` is differentiated with the weights that gradients get afterwards.

    Gradients are averaged over rows, sum_i n_i g_i / N. What flows back through an all-reduce (synchronized batch
    normalization) comes from the losses of all workers, weighted with *their* rows, while the result will be
    weighted with ours: the upstream gradient is therefore sum_j n_j dy_j / n_i.
    """

    def all_reduce(self, reduce_op, value, options=None):
        flat = tf.nest.flatten(value)
        if any(isinstance(tensor, tf.IndexedSlices) for tensor in flat):
            return super().all_reduce(reduce_op, value, options)
        extended = self.strategy.extended
        reduce_op = tf.distribute.ReduceOp(reduce_op.upper()) if isinstance(reduce_op, str) else reduce_op

        @tf.custom_gradient
        def reduced(*tensors):
            def gradient(*upstream):
                weight = _weight()
                if weight is None:
                    return self.all_reduce(reduce_op, list(upstream))
                heavy = [_times(tensor, weight) for tensor in upstream]
                return [_divided(tensor, weight) for tensor in self.all_reduce(reduce_op, heavy)]

            return extended._replica_ctx_all_reduce(reduce_op, list(tensors)), gradient

        return tf.nest.pack_sequence_as(value, tf.nest.flatten(reduced(*flat)))


def _weight():
    """Returns this worker's rows if gradients will be averaged over rows; None if they will be summed, or all weigh alike."""
    step = replica_step.current()
    if step is None or step.gradient_rule()[0] == "sum" or step.has_equal_shares():
        return None
    return step.weight()


def _times(tensor, weight):
    return tensor * tf.cast(weight, tensor.dtype)


def _divided(tensor, weight):
    return tf.math.divide_no_nan(tensor, tf.cast(weight, tensor.dtype))
