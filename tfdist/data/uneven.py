"""Datasets of which every worker has its own: batches of this worker's share, and an end that all reach together."""

import tensorflow as tf

from tfdist import errors
from tfdist.data import one_shot, randomness

_POLICY = tf.data.experimental.AutoShardPolicy
_OWN = "_tfdist_is_own"


class InStep:
    """Iterates a worker's own dataset until every worker's has ended.

    Before each batch the workers tell each other whether they still have data; one that has none gets a batch without
    rows, which weighs nothing. Iterating therefore blocks until all workers ask for their next batch.

    Args:
      strategy: the strategy, for the collective.
      dataset: this worker's `tf.data.Dataset`.
      for_trainer: whether a Keras trainer iterates it, which wants to hear of the end in its own words.
    """

    _tfdist_is_distributed = True

    def __init__(self, strategy, dataset, for_trainer=False):
        self._strategy = strategy
        self._dataset = dataset
        self._for_trainer = for_trainer

    def own_dataset(self):
        """Returns the `tf.data.Dataset`, marked so that distributing it again brings it back here."""
        setattr(self._dataset, _OWN, True)
        return self._dataset

    def as_trainer_wants(self):
        return InStep(self._strategy, self._dataset, for_trainer=True)

    @property
    def element_spec(self):
        return self._dataset.element_spec

    def cardinality(self):
        return tf.constant(tf.data.UNKNOWN_CARDINALITY, tf.int64)

    def __iter__(self):
        return _InStepIterator(self._strategy, self._dataset, self._for_trainer)


class _InStepIterator:
    def __init__(self, strategy, dataset, for_trainer):
        self._strategy = strategy
        self._for_trainer = for_trainer
        self._iterator = iter(dataset)
        self._spec = dataset.element_spec

    def __iter__(self):
        return self

    def __next__(self):
        if not tf.executing_eagerly():
            raise errors.ConfigurationError(
                "Workers agree about the end of their data outside of tf.function. Received: next() inside of one. "
                "Call next() in Python and pass the batch, or give every worker equally many batches."
            )
        batch = next(self._iterator, None)
        mine = tf.constant([0 if batch is None else 1], tf.int32)
        (anybody,) = self._strategy.all_reduce([mine], "max", name="more data")
        if not int(anybody[0]):
            if self._for_trainer:
                one_shot.end_of_data()
            raise StopIteration
        return self._empty() if batch is None else batch

    get_next = __next__

    def _empty(self):
        return tf.nest.map_structure(_without_rows, self._spec)


def is_own(dataset):
    """Returns whether `dataset` was given by a user as this worker's own."""
    return randomness.is_marked(dataset, _OWN)


def for_trainer(data):
    """Returns what a Keras trainer can take in place of `data`: a dataset whose length says nothing about the others'.

    Keras stops after the number of batches that it knows; workers' own datasets are to end together.
    """
    if isinstance(data, InStep):
        data = data.own_dataset()
    if not isinstance(data, tf.data.Dataset) or not (is_own(data) or policy_of(data) in (_POLICY.OFF, _POLICY.FILE)):
        return data
    hidden = data.filter(lambda *_: True)
    if is_own(data):
        setattr(hidden, _OWN, True)
    return hidden


def policy_of(dataset):
    """Returns the `tf.data.experimental.AutoShardPolicy` of `dataset`."""
    return dataset.options().experimental_distribute.auto_shard_policy


def rebatch(dataset, strategy):
    """Returns `dataset`, batched to the global size, in batches of this worker's share of it."""
    sizes = {spec.shape[0] for spec in tf.nest.flatten(dataset.element_spec) if spec.shape.rank}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None:
        size = _first_batch_rows(dataset)
    if not size:
        return dataset
    return dataset.unbatch().batch(max(1, -(-size // strategy.world_size)))


def shard_files(dataset, strategy):
    """Returns `dataset` reading only this worker's share of its files.

    Raises:
      ConfigurationError: if the dataset does not read files, or fewer than there are workers.
    """
    try:
        variant = tf.raw_ops.AutoShardDataset(
            input_dataset=tf.data.experimental.to_variant(dataset),
            num_workers=strategy.world_size,
            index=strategy.rank,
            auto_shard_policy=_POLICY.FILE.value,
            num_replicas=strategy.world_size,
            output_types=tf.nest.flatten(tf.compat.v1.data.get_output_types(dataset)),
            output_shapes=tf.nest.flatten(tf.compat.v1.data.get_output_shapes(dataset)),
        )
        sharded = tf.data.experimental.from_variant(variant, dataset.element_spec)
        next(iter(sharded), None)
    except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError) as error:
        raise errors.ConfigurationError(
            "AutoShardPolicy.FILE needs a dataset that reads at least one file per worker. Received: "
            f"world_size={strategy.world_size}, {error.message.splitlines()[0]}. Use AutoShardPolicy.DATA."
        ) from error
    return sharded


def _first_batch_rows(dataset):
    for batch in dataset.take(1):
        for leaf in tf.nest.flatten(batch):
            if leaf.shape.rank:
                return int(leaf.shape[0])
    return None


def _without_rows(spec):
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensor.from_row_lengths(tf.zeros([0], spec.dtype), tf.zeros([0], tf.int64))
    if isinstance(spec, tf.SparseTensorSpec):
        shape = [0, *(int(size or 1) for size in spec.shape[1:])]
        return tf.SparseTensor(tf.zeros([0, len(shape)], tf.int64), tf.zeros([0], spec.dtype), shape)
    shape = [0, *(int(size or 1) for size in spec.shape[1:])] if spec.shape.rank else []
    return tf.constant("", tf.string, shape) if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)
