"""Lets Keras's tests of `tf.distribute` run on workers in place of the devices of one process.

They make a `MirroredStrategy(["CPU:0", "CPU:1"])` and look at the values of both replicas. Here each replica is a worker, so
that what leaves `run` or a data set is gathered from all workers first.
"""

import functools
import types

import keras
import tensorflow as tf
from tensorflow.python.distribute import values  # not public: the tests ask for its PerReplica

from tfdist.strategies import step


def adapt(module):
    """Gives a test module `Replicas` in place of `MirroredStrategy`, and keeps it from resetting TensorFlow's devices."""
    module.context = types.SimpleNamespace(_reset_context=lambda: None)
    config = _Stand(tf.config, set_logical_device_configuration=lambda *_: None)
    kinds = (tf.Variable, tf.distribute.DistributedValues)  # a worker's replica of a variable is a plain one
    distribute = _Stand(tf.distribute, MirroredStrategy=Replicas, DistributedValues=kinds)
    module.tf = _Stand(tf, distribute=distribute, config=config)


class _Stand:
    """`original` with some attributes replaced."""

    def __init__(self, original, **replaced):
        self._original = original
        vars(self).update(replaced)

    def __getattr__(self, name):
        return getattr(self._original, name)


class Replicas(_Stand):
    """A `RingAllReduceStrategy` whose results carry the values of all replicas."""

    def __init__(self, devices):
        super().__init__(tf.distribute.get_strategy())  # the one that the plugin set

    def run(self, fn, args=(), kwargs=None):
        return self._gather(self._original.run(fn, args=args, kwargs=kwargs))

    def experimental_distribute_dataset(self, dataset, options=None):
        return map(self._gather, self._original.experimental_distribute_dataset(dataset, options))

    def _gather(self, result):
        return tf.nest.map_structure(self._gather_tensor, result)

    def _gather_tensor(self, tensor):
        if not isinstance(tensor, (tf.Tensor, tf.Variable)):
            return tensor
        everyone = self._original.all_gather(tf.convert_to_tensor(tensor)[None], name="of all replicas")
        return values.PerReplica(tf.unstack(everyone, num=self._original.world_size))


def apply_inside_of_run(strategy):
    """Puts calls of `Optimizer.apply` outside of `strategy.run`, which tfdist refuses, inside; each worker gives its part."""
    for kind in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer):
        kind.apply = _inside_of_run(kind.apply, strategy)


def _inside_of_run(original, strategy):
    @functools.wraps(original)
    def apply(optimizer, grads, trainable_variables=None):
        if step.current() is not None:
            return original(optimizer, grads, trainable_variables)
        parts = [_part(gradient, strategy) for gradient in grads]
        return strategy.run(lambda: original(optimizer, parts, trainable_variables))

    return apply


def _part(gradient, strategy):
    """Returns what this worker adds so that the sum over the workers is `gradient`."""
    if gradient is None:
        return None
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient / strategy.world_size
    ends = [len(gradient.indices) * rank // strategy.world_size for rank in range(strategy.world_size + 1)]
    own = slice(ends[strategy.rank], ends[strategy.rank + 1])
    values, indices = tf.convert_to_tensor(gradient.values), tf.convert_to_tensor(gradient.indices)
    return tf.IndexedSlices(values[own], indices[own], gradient.dense_shape)
