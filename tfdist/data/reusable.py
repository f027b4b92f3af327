"""The iterator that TensorFlow's older `make_dataset_iterator` and `make_input_fn_iterator` promise."""


class ReusableIterator:
    """Iterates a dataset from its beginning after every `initialize()`; eager mode only.

    Args:
      dataset: iterable of batches.
    """

    def __init__(self, dataset):
        self._dataset = dataset
        self._iterator = iter(dataset)

    def get_next(self):
        """Returns the next batch; raises `StopIteration` at the end."""
        return next(self._iterator)

    __next__ = get_next

    def __iter__(self):
        return self

    def initialize(self):
        """Goes back to the beginning; returns the operations to run for that, none in eager mode."""
        self._iterator = iter(self._dataset)
        return []

    @property
    def initializer(self):
        return self.initialize()
