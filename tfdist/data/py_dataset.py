"""`keras.utils.PyDataset` in an order that all workers draw alike."""

import keras

from tfdist.data.permutation import epoch_order


class SharedOrder(keras.utils.PyDataset):
    """Shuffles the batches of another `PyDataset`; Keras itself would draw another order on every worker.

    Args:
      dataset: the `keras.utils.PyDataset` to be shuffled.
      seed: sequence of ints, the same on all workers; the number of the epoch is appended.
    """

    def __init__(self, dataset, seed):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self._dataset = dataset
        self._seed = seed
        self._epoch = 0
        self._order = None
        self._draw()

    @property
    def num_batches(self):
        return self._dataset.num_batches

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        return self._dataset[index if self._order is None else int(self._order[index])]

    def on_epoch_begin(self):
        self._dataset.on_epoch_begin()

    def on_epoch_end(self):
        self._dataset.on_epoch_end()
        self._epoch += 1
        self._draw()

    @property
    def num_epochs(self):
        """How many epochs are over."""
        return self._epoch

    def pass_epochs(self, count):
        """Goes on as if `count` further epochs were over."""
        self._epoch += count
        self._draw()

    def _draw(self):
        if self.num_batches is not None:
            self._order = epoch_order(self.num_batches, 1, True, [*self._seed, self._epoch])
