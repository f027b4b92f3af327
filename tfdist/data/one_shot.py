"""Data that can be read once only (a Python generator)."""

import tensorflow as tf


class OneShot:
    """Iterates a dataset whose elements are gone once read, for a Keras trainer.

    Keras takes one batch to see its shapes and starts over before it trains: that batch is given out again.

    Args:
      dataset: iterable of batches.
    """

    _tfdist_is_distributed = True

    def __init__(self, dataset):
        self._dataset = dataset
        self._iterator = None
        self._waiting = []

    def __iter__(self):
        if self._iterator is not None:
            return self
        self._iterator = iter(self._dataset)
        self._waiting = [next(self._iterator)]
        return iter(list(self._waiting))

    def __next__(self):
        if self._waiting:
            return self._waiting.pop()
        batch = next(self._iterator, None)
        return end_of_data() if batch is None else batch


def end_of_data():
    """Ends an epoch in the words of a Keras trainer, which does not understand StopIteration from an iterable."""
    raise tf.errors.OutOfRangeError(None, None, "end of data")
