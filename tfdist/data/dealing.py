"""An epoch's batches dealt to whoever is free: a slow worker gets fewer, and all come to the end together."""

import numpy as np
import tensorflow as tf

from tfdist.data import permutation, pipeline, randomness, rows
from tfdist.errors import ConfigurationError

_WANTED = "_tfdist_is_to_be_dealt"
_DEALT = "_tfdist_is_dealt"


def dynamic_shards(dataset):
    """Returns `dataset` so that asynchronous strategies deal its batches to whoever is free.

    Each batch is seen by one worker, once an epoch; a worker that is slow, or slow for a while, gets fewer, and an epoch
    ends for all at about the same time. Arrays, and datasets whose sources are in memory, are dealt in any case: ask for
    it where a dataset reads files or comes from a generator. Strategies that synchronise every step divide the rows of
    each batch instead and take no notice.

    A batch is that of one worker's step. Cost: every worker runs the whole pipeline, also for the batches that are not
    its own, so it pays where making a batch is much cheaper than a training step. It asks the store a few times per
    hundred batches, and every second batch where the dataset's cardinality is not known. Where reading is what costs,
    give every worker its own files (`tf.distribute.DistributedDataset`, `AutoShardPolicy.FILE`) instead.

    Args:
      dataset: a `tf.data.Dataset` of batches that comes to an end and is in the same order on all workers: create the
        strategy before the dataset or pass `seed` to `shuffle`.

    Returns:
      A `tf.data.Dataset` with the same elements, to be given to `model.fit` or to
      `strategy.experimental_distribute_dataset`.

    Raises:
      ConfigurationError: if it is no `tf.data.Dataset` or has no end.

    Example:

    ```python
    dataset = tf.data.TFRecordDataset(files).map(parse).batch(64)
    model.fit(tfdist.data.dynamic_shards(dataset), epochs=3)
    ```
    """
    if not isinstance(dataset, tf.data.Dataset) or int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        kind = "one without end" if isinstance(dataset, tf.data.Dataset) else type(dataset).__name__
        raise ConfigurationError(
            f"dynamic_shards expects a tf.data.Dataset that ends. Received: {kind}. Give fit the epochs instead of "
            "repeat(), and arrays as they are."
        )
    marked = dataset.with_options(tf.data.Options())  # a dataset of its own: the user's stays unmarked
    setattr(marked, _WANTED, True)
    return marked


def is_wanted(dataset):
    """Returns whether `dataset` is to be dealt: on request, or because skipping its batches costs little.

    That is where its length is known and all that it is made from is in memory.
    """
    if is_dealt(dataset) or not isinstance(dataset, tf.data.Dataset):
        return False
    if randomness.is_marked(dataset, _WANTED):
        return True
    return int(dataset.cardinality()) >= 0 and all(_is_in_memory(part) for part in randomness.parts(dataset))


def is_dealt(data):
    """Returns whether `data` is a dataset of batches that are dealt to this worker."""
    return isinstance(data, tf.data.Dataset) and randomness.is_marked(data, _DEALT)


def dealt(dataset, dealer, look_first=False):
    """Returns the batches of `dataset` that are dealt to this worker; every iteration is another epoch.

    Args:
      dataset: a `tf.data.Dataset` of batches, in the same order on all workers.
      dealer: a `tfdist.data.dealer.Dealer`.
      look_first: see `Dealer.deal`.

    Returns:
      A `tf.data.Dataset`. It takes one piece at a time, and the next when it has given out the last batch of the one
      before: it runs one batch ahead, never further.
    """
    length = int(dataset.cardinality())
    deal = dealer.deal(length if length >= 0 else None, look_first, is_stream=True)

    def ask(epoch):
        epoch = deal.begin() if epoch < 0 else epoch
        first, count = deal.next_piece(int(epoch))
        return np.int64(epoch), np.int64(first), np.int64(first + count)

    def follow(state, index, batch):
        epoch, first, stop = tf.cond(
            index < state[2], lambda: state, lambda: tuple(tf.numpy_function(ask, state[:1], [tf.int64] * 3))
        )
        for value in (epoch, first, stop):
            value.set_shape([])
        return (epoch, first, stop), (index, first, stop, batch)

    start = tuple(tf.constant(value, tf.int64) for value in (-1, 0, 0))
    followed = dataset.enumerate().scan(start, _plain(lambda state, element: follow(state, *element)))
    followed = followed.take_while(_plain(lambda index, first, stop, batch: first < stop))
    mine = followed.filter(_plain(lambda index, first, stop, batch: index >= first))
    return _finish(mine.map(_plain(lambda index, first, stop, batch: batch)))


def dealt_batches(arrays, *, num_rows, batch_size, shuffle, seed, dealer, look_first=False):
    """Returns the batches of arrays that are dealt to this worker; every iteration is another epoch.

    The batches of all workers together are those of `permutation.batches` with one worker, each once. Only the rows of
    this worker's batches are read.

    Args:
      arrays: nested structure of NumPy arrays or tensors with `num_rows` rows each; None stays None.
      num_rows: int.
      batch_size: int, rows of one worker's step.
      shuffle: see `permutation.epoch_order`.
      seed: sequence of ints, the same on all workers; the number of the epoch is appended.
      dealer: a `tfdist.data.dealer.Dealer`.
      look_first: see `Dealer.deal`.

    Returns:
      A `tf.data.Dataset`. It runs one batch ahead, never further, see `dealt`.
    """
    num_left = num_rows % batch_size
    deal = dealer.deal(-(-num_rows // batch_size), look_first)
    arrays, rebuild = permutation.flatten(arrays)
    gather = rows.gatherer(arrays)
    block = rows.batches_per_block(arrays, batch_size)

    def draw(_):
        epoch = deal.begin()
        return np.int64(epoch), permutation.epoch_order(num_rows, batch_size, shuffle, [*seed, epoch])

    def begin(index):
        epoch, order = tf.numpy_function(draw, [index], (tf.int64, tf.int64))
        order.set_shape([num_rows])
        return epoch, order

    def take_pieces(epoch, order, ask=deal.next_piece):
        def take(_):
            piece = tf.numpy_function(lambda epoch: np.array(ask(int(epoch)), np.int64), [epoch], tf.int64)
            piece.set_shape([2])
            return order[piece[0] * batch_size : (piece[0] + piece[1]) * batch_size]

        endless = tf.data.Dataset.range(num_rows + 1)  # there cannot be more pieces
        return endless.map(take).take_while(lambda numbers: tf.size(numbers) > 0)

    def cut(numbers):
        num_full = tf.size(numbers, tf.int64) // batch_size
        full = tf.reshape(numbers[: num_full * batch_size], [-1, batch_size])
        left = numbers[num_full * batch_size :]
        blocks = tf.data.Dataset.range(0, num_full, block).map(lambda first: full[first : first + block])
        if not num_left:
            return blocks
        return blocks.concatenate(tf.data.Dataset.from_tensors(left[None]).take(tf.minimum(tf.size(left, tf.int64), 1)))

    def read(dataset):
        dataset = dataset.flat_map(_plain(cut)).map(_plain(lambda numbers: tuple(gather(numbers))))
        dataset = dataset.flat_map(_plain(lambda *leaves: tf.data.Dataset.from_tensor_slices(leaves)))
        return dataset.map(_plain(lambda *leaves: rebuild(leaves)))

    epochs = tf.data.Dataset.range(1).map(_plain(begin))
    if not deal.is_leased:
        return _finish(read(epochs.flat_map(_plain(take_pieces))))

    def lease(epoch, order):
        mine = _noted(_ahead(read(take_pieces(epoch, order))), deal, epoch)
        return mine.concatenate(read(take_pieces(epoch, order, deal.rest)))  # asked when all of `mine` is trained on

    return _mark(pipeline.configure(epochs.flat_map(_plain(lease))))


def _noted(dataset, deal, epoch):
    """Returns the batches of an epoch; `deal` hears of those before when the next is handed out, as often as it wants to."""

    def note(epoch, number):
        return np.float64(deal.finished(int(epoch), int(number)))

    def hand_out(state, batch):
        number, due = state
        due = tf.cond(tf.timestamp() < due, lambda: due, lambda: tf.numpy_function(note, [epoch, number], tf.float64))
        due.set_shape([])
        return (number + 1, due), batch

    start = (tf.constant(0, tf.int64), tf.constant(0, tf.float64))
    return dataset.scan(start, _plain(hand_out))


def _finish(dataset):
    return _mark(_ahead(pipeline.configure(dataset)))


def _ahead(dataset):
    return pipeline.ahead(dataset, 1)  # more would keep from others what this worker is not ready for


def _mark(dataset):
    setattr(dataset, _DEALT, True)
    return dataset


def _plain(function):
    return tf.autograph.experimental.do_not_convert(function)


def _is_in_memory(part):
    """Returns whether `part` is made from another dataset, or can be read anywhere without reading what comes before."""
    if part._inputs():
        return True
    try:
        tf.data.experimental.at(part, 0)
    except (tf.errors.UnimplementedError, tf.errors.OutOfRangeError):
        return False
    return True
