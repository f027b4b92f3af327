"""Array data in batches: one order for all workers, each gathering only its own rows.

The order of epoch e of fit call f is a permutation drawn by NumPy from (job seed, f, e) on every worker; batch b is
rows b*B .. (b+1)*B of it, and worker r takes its contiguous share of each batch. One Python call per epoch, the rest
runs in TensorFlow's input pipeline.
"""

import functools
import hashlib
import itertools
import random

import numpy as np
import tensorflow as tf

from tfdist.data import pipeline, rows

_SEED = "the data's seed"


class Epochs:
    """Counts the epochs of array data, from 0.

    Args:
      num_epochs: int, how many were begun.
    """

    def __init__(self, num_epochs=0):
        self.num_epochs = num_epochs

    def begin_epoch(self):
        """Returns the number of the next epoch."""
        self.num_epochs += 1
        return self.num_epochs - 1

    def pass_epochs(self, count):
        """Counts on as if `count` further epochs had been begun."""
        self.num_epochs += count


def share(num_rows, rank, world_size):
    """Returns `(start, stop)` of a worker's contiguous part of `num_rows` rows; sizes differ by at most one."""
    base, extra = num_rows // world_size, num_rows % world_size
    start = rank * base + min(rank, extra)
    return start, start + base + (1 if rank < extra else 0)


def job_seed(strategy):
    """Returns the seed of the data's order: the strategy's, else one from rank 0's Python random state.

    The random state is not consumed, so that a run repeats after `keras.utils.set_random_seed`.
    """
    if strategy.seed is None:
        state = hashlib.sha256(repr(random.getstate()).encode()).digest()[:8]
        strategy.seed = int.from_bytes(strategy.share_bytes(state, name=_SEED), "little")
    return int(strategy.seed) % 2**64


def keep_seed(strategy):
    """Has workers that come later take the seed that the strategy has now."""
    if strategy.elastic is not None and strategy.is_chief:
        strategy.elastic.keep(_SEED, (int(strategy.seed) % 2**64).to_bytes(8, "little"))


def epoch_order(num_rows, batch_size, shuffle, seed):
    """Returns the rows of an epoch in the order in which all workers together see them.

    Args:
      num_rows: int.
      batch_size: int, the global batch size.
      shuffle: False, True, or `"batch"` (within batches only).
      seed: sequence of ints.

    Returns:
      int64 array of shape `(num_rows,)`.
    """
    order = np.arange(num_rows, dtype=np.int64)
    if not shuffle:
        return order
    generator = np.random.default_rng([int(value) % 2**64 for value in seed])
    if shuffle != "batch":
        generator.shuffle(order)
        return order
    full = num_rows - num_rows % batch_size
    order[:full] = generator.permuted(order[:full].reshape(-1, batch_size), axis=1).reshape(-1)
    generator.shuffle(order[full:])
    return order


def batch_sizes(num_rows, batch_size):
    """Returns the set of the numbers of rows that a global batch can have."""
    num_full, num_left = divmod(num_rows, batch_size)
    return ({batch_size} if num_full else set()) | ({num_left} if num_left else set())


@tf.autograph.experimental.do_not_convert
def batches(arrays, *, num_rows, batch_size, shuffle, seed, rank, world_size, next_epoch=None, any_share=False):
    """Returns a dataset of this worker's part of every global batch.

    Every iterator made from the dataset is another epoch. Rows are gathered in blocks of some batches, of this worker's
    rows alone and straight from the arrays; where they lie aligned a batch is a view of its block.

    Args:
      arrays: nested structure of NumPy arrays or tensors with `num_rows` rows each; None stays None.
      num_rows: int.
      batch_size: int, the global batch size.
      shuffle: see `epoch_order`.
      seed: sequence of ints; the number of the epoch is appended.
      rank: int, this worker.
      world_size: int.
      next_epoch: called when an iterator begins: the number of its epoch; None counts them.
      any_share: bool, whether its specification is to be that of any worker of any number.

    Returns:
      A `tf.data.Dataset` with as many batches on every worker; the last may be short, or hold no row.
    """
    num_full, num_left = divmod(num_rows, batch_size)
    start, stop = share(batch_size, rank, world_size)
    left_start, left_stop = share(num_left, rank, world_size)
    next_epoch = next_epoch or functools.partial(next, itertools.count())
    arrays, rebuild = flatten(arrays)
    gather = rows.gatherer(arrays)
    block = rows.batches_per_block(arrays, stop - start)

    def draw(_):
        order = epoch_order(num_rows, batch_size, shuffle, [*seed, next_epoch()])
        full = order[: num_full * batch_size].reshape(num_full, batch_size)[:, start:stop]
        left = order[num_full * batch_size :][left_start:left_stop]
        return np.ascontiguousarray(full), left

    def mine(index):
        full, left = tf.numpy_function(draw, [index], (tf.int64, tf.int64))
        full.set_shape([num_full, None if any_share else stop - start])
        left.set_shape([None if any_share else left_stop - left_start])
        return full, left

    def cut(full, left):
        blocks = tf.data.Dataset.range(0, num_full, block).map(lambda first: full[first : first + block])
        return blocks.concatenate(tf.data.Dataset.from_tensors(left[None])) if num_left else blocks

    dataset = tf.data.Dataset.range(1).map(mine).flat_map(cut)
    dataset = pipeline.parallel_map(dataset, lambda numbers: tuple(gather(numbers)))
    dataset = dataset.flat_map(lambda *leaves: tf.data.Dataset.from_tensor_slices(leaves))
    dataset = dataset.map(lambda *leaves: rebuild(leaves))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(num_full + bool(num_left)))
    return pipeline.finish(dataset)


def flatten(structure):
    """Returns the leaves of `structure` and a function that puts others in their place (None stays None)."""
    flat = tf.nest.flatten(structure)
    present = [leaf for leaf in flat if leaf is not None]

    def rebuild(leaves):
        leaves = iter(leaves)
        return tf.nest.pack_sequence_as(structure, [None if leaf is None else next(leaves) for leaf in flat])

    return present, rebuild
