"""Variables start equal: the chief's initial value is everybody's."""

import tensorflow as tf


def from_chief(strategy, arguments):
    """Returns the initial value of a variable on rank 0, evaluated once, as an eager tensor.

    Args:
      strategy: the strategy in whose scope the variable is made.
      arguments: keyword arguments of the variable.
    """
    initial, dtype = arguments.get("initial_value"), arguments.get("dtype")
    with tf.init_scope():
        if initial is None or not tf.executing_eagerly():
            return initial
        value = initial() if callable(initial) else initial
        if tf.is_tensor(value) and not hasattr(value, "numpy"):
            return initial  # a tensor of the graph being traced: computed alike by every rank
        value = tf.convert_to_tensor(value, dtype=dtype)
        return strategy.broadcast(value, name=arguments.get("name") or "variable")


def broadcast(strategy, tensor, root, name):
    """Returns rank `root`'s tensor on every worker; strings too, which no collective moves."""
    from tfdist.strategies import graph_bridge

    tensor = tf.convert_to_tensor(tensor)
    if tensor.dtype != tf.string:
        return graph_bridge.broadcast(tensor, root, group=strategy.worker_group, name=name)
    value = tf.io.parse_tensor(strategy.share_bytes(tf.io.serialize_tensor(tensor).numpy(), root), tensor.dtype)
    value.set_shape(tensor.shape)
    return value
