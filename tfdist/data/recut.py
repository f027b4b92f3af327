"""Data that are divided anew, in the middle of an epoch, when workers are lost or come.

A worker's iterator knows how far it has come and among whom the data were divided. Once the members are others, what is
left of the epoch is divided among them: the global batches stay what they are, and the rows that a lost worker
should have seen in the step that went on without it are added to the batches to come. Where the data cannot be read from any
place on (`tf.data`), the rows of a lost worker are missed until the epoch ends, and everything is divided anew then.
"""

import threading

import numpy as np
import tensorflow as tf
from absl import logging

from tfdist.data import permutation, pipeline, rows, sharding, shares

_LOCAL = threading.local()


class Arrays:
    """Array data of which any part can be divided among any number of workers.

    Args:
      arrays: nested structure of NumPy arrays or tensors with `num_rows` rows each; None stays None.
      num_rows, batch_size: int; the batch is the global one.
      shuffle, seed: see `permutation.batches`.
    """

    def __init__(self, arrays, num_rows, batch_size, shuffle, seed):
        self.num_rows, self.batch_size = num_rows, batch_size
        self.num_batches = -(-num_rows // batch_size)
        self._arrays, self._shuffle, self._seed = arrays, shuffle, seed
        self.num_epochs = 0  # that were begun
        self._epoch = 0  # of the latest iterator
        self._divided = {}  # by (index, count)

    def pass_epochs(self, count):
        """Counts on as if `count` further epochs had been begun."""
        self.num_epochs += count

    def order(self, epoch):
        """Returns the rows of an epoch in their order, int64."""
        return permutation.epoch_order(self.num_rows, self.batch_size, self._shuffle, [*self._seed, epoch])

    def whole(self, epoch, index, count):
        """Returns a dataset of one worker's part of an epoch."""
        self._epoch = epoch
        if (index, count) not in self._divided:
            dataset = permutation.batches(
                self._arrays, num_rows=self.num_rows, batch_size=self.batch_size, shuffle=self._shuffle,
                seed=self._seed, rank=index, world_size=count, next_epoch=lambda: self._epoch,
                any_share=True,
            )  # fmt: skip
            self._divided = {(index, count): dataset}
        return self._divided[index, count]

    def rest(self, epoch, first, missed, index, count):
        """Returns a dataset of one worker's part of an epoch from batch `first` on, with the rows `missed`."""
        arrays, rebuild = permutation.flatten(self._arrays)
        gather, order = rows.gatherer(arrays), self.order(epoch)

        def draw(number):
            numbers = self.batch_of(order, first + int(number), first, missed)
            start, stop = permutation.share(len(numbers), index, count)
            return numbers[start:stop]

        @tf.autograph.experimental.do_not_convert
        def take(number):
            numbers = tf.numpy_function(draw, [number], tf.int64)
            numbers.set_shape([None])
            return rebuild(gather(numbers))

        dataset = pipeline.parallel_map(tf.data.Dataset.range(self.num_batches - first), take)
        return pipeline.finish(dataset)

    def batch_of(self, order, batch, first, missed):
        """Returns the rows of a batch of the epoch `order`; the batches from `first` on share the rows `missed`."""
        start, stop = permutation.share(len(missed), batch - first, self.num_batches - first)
        return np.concatenate([order[batch * self.batch_size :][: self.batch_size], missed[start:stop]])


class Recutting:
    """Iterates a dataset for a Keras trainer, divided among the members that there are.

    Args:
      strategy: an elastic strategy.
      dataset: the `tf.data.Dataset` of global batches, or None.
      arrays: `Arrays` instead.
    """

    _tfdist_is_distributed = True

    def __init__(self, strategy, dataset=None, arrays=None):
        self.strategy, self.dataset, self.arrays = strategy, dataset, arrays
        # What holds for the most workers holds for fewer: a step that was traced for it need not be traced again.
        self._lasting = shares.lasting(self._shares_of(strategy.world_size))
        self._divided = {}  # by (index, count)
        self.num_iterators = 0  # a dataset may be in another order in each

    def __iter__(self):
        return Part(self)

    def known(self, count, is_whole=True):
        """Returns the `Shares` of batches among `count` workers; of what is left of an epoch, among any number."""
        is_equal = is_whole and self._shares_of(count) is shares.Shares.EQUAL
        return shares.Shares.EQUAL if is_equal else self._lasting

    def _shares_of(self, count):
        if self.arrays is None:
            return shares.of_spec(self.dataset.element_spec, count)
        return shares.of_sizes(permutation.batch_sizes(self.arrays.num_rows, self.arrays.batch_size), count)

    def place(self):
        """Returns how far the epochs are that come next, for JSON."""
        return [self.arrays.num_epochs if self.arrays else 0, self.num_iterators]

    def catch_up(self, place):
        """Goes on as a worker does whose `place` is this."""
        num_epochs, num_iterators = place
        if self.arrays:
            self.arrays.num_epochs = num_epochs
        else:
            while self.num_iterators < num_iterators:
                self.iterator(0, 1)

    def iterator(self, index, count):
        """Returns a new iterator of one worker's part of the dataset."""
        if (index, count) not in self._divided:
            self._divided = {(index, count): sharding.share_rows(self.dataset, index, count, any_share=True)}
        self.num_iterators += 1
        return shares.promise(iter(self._divided[index, count]), self.known(count))


class Part:
    """This worker's part of an epoch's data.

    Args:
      data: the `Recutting`.
    """

    def __init__(self, data):
        self._data, self._arrays, self._elastic = data, data.arrays, data.strategy.elastic
        self.epoch = self._arrays.num_epochs if self._arrays else 0
        self.batch = 0
        self._first, self._missed = 0, np.zeros(0, np.int64)  # the batches from there on share the missed rows
        self._lost = [self._missed]  # rows that were missed since
        self._has_lost = False
        self._divide()

    def state(self):
        """Returns where this part stands, for JSON."""
        missed = [] if self._arrays is None else self._still_missed().tolist()
        return {"epoch": self.epoch, "batch": self.batch, "missed": missed, "iterators": self._data.num_iterators}

    def go_to(self, state):
        """Goes on where another worker's part stands, among the members that there are now."""
        self.batch = state["batch"]
        if self._arrays:
            self.epoch, self._arrays.num_epochs = state["epoch"], state["epoch"] + 1
            self._lost = [np.array(state["missed"], np.int64)]
            self._first, self._missed = self.batch, np.zeros(0, np.int64)
        else:
            while self._data.num_iterators < state["iterators"]:
                self._data.iterator(0, 1)
        self._divide()

    def pass_over(self, num_batches, missed=()):
        """Goes on `num_batches` further, which nobody trains on; all members do so alike.

        Args:
          num_batches: int.
          missed: rows of array data that are to be seen in the batches to come.
        """
        if self._arrays:
            self.go_to({"epoch": self.epoch, "batch": self.batch + num_batches, "missed": missed})
            return
        for _ in range(num_batches):
            next(self._iterator)
        self.batch += num_batches

    @property
    def can_divide(self):
        """Whether what is left can be divided anew here."""
        return self._arrays is not None or self.batch == 0

    def ready(self):
        """Returns the iterator of the batches to come; all members do at the same place."""
        self._begin()
        if self._elastic.generation != self._divided_in and self.can_divide:  # one may have come back meanwhile
            self._divide()
        return self._iterator

    def done(self, generation, num_batches):
        """Notes that batches were used in `generation`, whose members may lack some of those who had rows in them."""
        lost = [slot for slot in self.members if slot not in self._elastic.of_generation(generation)]
        if lost and self._arrays and num_batches == 1:
            order = self._arrays.order(self.epoch)
            numbers = self._arrays.batch_of(order, self.batch, self._first, self._missed)
            for slot in lost:
                start, stop = permutation.share(len(numbers), self.members.index(slot), len(self.members))
                self._lost.append(numbers[start:stop])
        self.batch += num_batches
        if lost and not self._has_lost:
            self._has_lost = True
            self._say(lost)

    def _begin(self):
        """Counts the epoch when it is used: Keras makes an iterator at the end of one epoch, and another for the next."""
        if self._arrays:
            self._arrays.num_epochs = max(self._arrays.num_epochs, self.epoch + 1)

    def _still_missed(self):
        """The rows that are to be added to the batches to come."""
        given = 0
        if self.batch > self._first:
            _, given = permutation.share(
                len(self._missed), self.batch - 1 - self._first, self._arrays.num_batches - self._first
            )
        return np.concatenate([self._missed[given:], *self._lost])

    def is_without(self, generation):
        """Returns whether somebody who had rows in the last batch took no part in it."""
        return any(slot not in self._elastic.of_generation(generation) for slot in self.members)

    def _say(self, lost):
        is_last = self._arrays is None or self.batch >= self._arrays.num_batches
        when = "in the next epoch" if is_last else "in what is left of this epoch"
        logging.info("tfdist: the rows of rank %s will be seen by the others %s", ", ".join(map(str, lost)), when)

    def _divide(self):
        self.members, self._divided_in = self._elastic.present, self._elastic.generation
        index, count = self._elastic.share_of_data
        if self._arrays is None:
            self._iterator = self._data.iterator(index, count)
        else:
            self._first, self._missed, self._lost = self.batch, self._still_missed(), []
            # What a joiner traces by itself is what all run when it has joined in the middle of an epoch.
            is_whole = self.batch == 0 and not len(self._missed) and not self._elastic.is_joining
            if is_whole:
                dataset = self._arrays.whole(self.epoch, index, count)
            else:
                dataset = self._arrays.rest(self.epoch, self.batch, self._missed, index, count)
            self._iterator = shares.promise(iter(dataset), self._data.known(count, is_whole))

    @property
    def generation(self):
        """The generation of what was done last."""
        return self._elastic.generation

    @property
    def num_left(self):
        """How many batches are left, or None."""
        return None if self._arrays is None else self._arrays.num_batches - self.batch

    def __iter__(self):
        return self

    def __next__(self):
        self._begin()
        _LOCAL.part = self
        return next(self._iterator)


def latest():
    """Returns the `Part` from which this thread has taken a batch last, or None."""
    return getattr(_LOCAL, "part", None)


setattr(Part, shares.ATTRIBUTE, property(lambda part: shares.promised(part._iterator)))
