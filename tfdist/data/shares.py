"""What the input pipeline knows beforehand about the workers' shares of a batch.

Where all workers hold equally many rows of every batch, the mean over rows is the mean over workers and no number of rows
has to be exchanged; where none is ever without rows, nothing has to stand in for missing ones. The promise belongs to the
*iterator*, so that data which come by another way (`train_on_batch` in the middle of `fit`) never profit from it, and it
follows from numbers that workers agree on before they begin: it is the same on all of them.
"""

import enum
import threading

import tensorflow as tf

ATTRIBUTE = "_tfdist_shares"
_LOCAL = threading.local()


class Shares(enum.Enum):
    """What holds for every batch."""

    UNKNOWN = "any number of rows, or none"
    FILLED = "one row at least on every worker"
    EQUAL = "equally many rows on every worker, and one at least"


def of_sizes(sizes, world_size):
    """Returns the `Shares` of global batches of `sizes` rows (iterable of int) that workers divide evenly."""
    sizes = set(sizes)
    if not sizes or min(sizes) < world_size:
        return Shares.UNKNOWN
    return Shares.FILLED if any(size % world_size for size in sizes) else Shares.EQUAL


def of_spec(spec, world_size):
    """Returns the `Shares` of global batches that a `tf.data.Dataset` of element specification `spec` yields."""
    leaves = [leaf for leaf in tf.nest.flatten(spec) if leaf.shape.rank != 0]
    sizes = {None if leaf.shape.rank is None else leaf.shape[0] for leaf in leaves}
    return Shares.UNKNOWN if None in sizes or len(sizes) != 1 else of_sizes(sizes, world_size)


def lasting(shares):
    """Returns what of `shares` holds for fewer workers too."""
    return Shares.FILLED if shares is Shares.EQUAL else shares


def promise(data, shares):
    """Makes `data`, a dataset or an iterator, promise `shares`; returns it."""
    setattr(data, ATTRIBUTE, shares)
    return data


def promised(data):
    """Returns the `Shares` that `data` promises."""
    return getattr(data, ATTRIBUTE, Shares.UNKNOWN)


def current():
    """Returns the `Shares` of the batch on which this thread is at work."""
    return getattr(_LOCAL, "shares", Shares.UNKNOWN)


def call(function, iterator):
    """Returns `function(iterator)`; meanwhile `current()` is what `iterator` promises."""
    outer = current()
    _LOCAL.shares = promised(iterator)
    try:
        return function(iterator)
    finally:
        _LOCAL.shares = outer


class Promising:
    """Iterates a dataset for a Keras trainer; the iterators promise what the dataset does.

    Args:
      dataset: a `tf.data.Dataset`.
    """

    def __init__(self, dataset):
        self._dataset = dataset

    def __iter__(self):
        return promise(iter(self._dataset), promised(self._dataset))
