"""Gradients are reduced before Keras looks at them.

Clipping, loss scaling, accumulation, weight decay and moving averages all live inside `Optimizer.apply`. They must see
the gradient of the whole batch, so the reduction happens at the door of the outermost `apply`.
"""

import keras
import tensorflow as tf

from tfdist import errors
from tfdist.strategies import hosting, state
from tfdist.strategies import step as replica_step
from tfdist.strategies.replica import AbstractReplicaStrategy


def apply(original, optimizer, grads, trainable_variables=None):
    """Stands in for `Optimizer.apply`."""
    step = replica_step.current()
    if step is None:
        _refuse_outside_of_run()
        return _in_replica_context(original, optimizer, grads, trainable_variables)
    if not step.optimizer_depth and step.strategy.uses_servers:
        return _apply_on_servers(original, step, optimizer, list(grads), trainable_variables)
    if not step.optimizer_depth:
        grads = reduce_gradients(step, optimizer, list(grads), trainable_variables)
    step.optimizer_depth += 1
    try:
        return original(optimizer, grads, trainable_variables)
    finally:
        step.optimizer_depth -= 1


def _apply_on_servers(original, step, optimizer, gradients, variables):
    variables = list(variables) if variables is not None else optimizer._trainable_variables
    if not any(gradient is not None for gradient in gradients):
        return original(optimizer, gradients, variables)  # Keras says best what is wrong
    if hosting.parts_of(optimizer) != [optimizer]:
        return original(optimizer, gradients, variables)  # its parts come here again
    step.optimizer_depth += 1
    try:
        if not optimizer.built:
            with tf.init_scope():
                optimizer.build(variables)
        statistics = [variable for variable, _ in step.written.values()]
        step.strategy.optimizer_of(optimizer, statistics).apply(step, gradients, variables)
    finally:
        step.optimizer_depth -= 1


def reduce_gradients(step, optimizer, gradients, variables):
    """Returns the gradients of the whole batch, None where there was None.

    Args:
      step: the current `ReplicaStep`.
      optimizer: the Keras optimizer that will apply them.
      gradients: list of tensors, `tf.IndexedSlices` or None, in order of creation.
      variables: the variables they belong to, or None.
    """
    variables = list(variables) if variables is not None else optimizer._trainable_variables
    present = [i for i in reversed(range(len(gradients))) if gradients[i] is not None]
    if not present:
        return gradients
    op, factor = step.gradient_rule()
    tensors = [gradients[i] for i in present]
    if op == "sum" and step.may_be_empty:
        tensors = [state.mask(step.has_rows(), tensor) for tensor in tensors]
    reduced = step.strategy.all_reduce(
        tensors,
        op,
        weight=step.weight() if op == "mean" and not step.has_equal_shares() else None,
        step=tf.cast(tf.convert_to_tensor(optimizer.iterations), tf.int64),
        name="gradients",
        names=[hosting.path_of(variables[i]) for i in present],
        keep_rows=not _is_linear(optimizer),
        wire_dtype=step.strategy.wire_dtype,
    )
    result = list(gradients)
    for i, tensor in zip(present, reduced):
        result[i] = state.scaled(tensor, factor)
    return result


def _is_linear(optimizer):
    """Whether only the sum of a sparse gradient's rows counts.

    Elsewhere Keras squares and clips the rows of equal index one by one, so one process's rows must stay apart.
    """
    clips = (optimizer.clipnorm, optimizer.clipvalue, optimizer.global_clipnorm)
    return type(optimizer) is keras.optimizers.SGD and all(bound is None for bound in clips)


def _in_replica_context(original, *arguments):
    """Calls as from a replica function, which Keras's LossScaleOptimizer insists on; here one worker is all."""
    strategy = tf.distribute.get_strategy()
    if isinstance(strategy, AbstractReplicaStrategy) and tf.distribute.in_cross_replica_context():
        return strategy.run(tf.autograph.experimental.do_not_convert(original), args=arguments)
    return original(*arguments)


def _refuse_outside_of_run():
    strategy = tf.distribute.get_strategy()
    if not isinstance(strategy, AbstractReplicaStrategy) or (strategy.world_size == 1 and not strategy.uses_servers):
        return
    raise errors.ConfigurationError(
        "Gradients reach other workers and servers inside a replica function only. Received: Optimizer.apply called outside of "
        "strategy.run. Put the training step into a function and call strategy.run(step, args=(batch,))."
    )


def next_seed(original, generator, *args, **kwargs):
    """Stands in for `SeedGenerator.next`: equal state on all ranks, but other draws (dropout masks) on each."""
    seed = original(generator, *args, **kwargs)
    step = replica_step.current()
    if step is None or step.strategy.rank == 0:
        return seed
    fold = tf.constant([step.strategy.rank * 1_000_003, 0], dtype=tf.int64)
    return seed + tf.cast(fold, seed.dtype)
