"""Datasets of which every worker has its own: batches of this worker's share, and an end that all reach together."""

import tensorflow as tf

from tfdist import errors


class InStep:
    """Iterates a worker's own dataset until every worker's has ended.

    Before each batch the workers tell each other whether they still have data; one that has none gets a batch without
    rows, which weighs nothing. Iterating therefore blocks until all workers ask for their next batch.

    Args:
      strategy: the strategy, for the collective.
      dataset: this worker's `tf.data.Dataset`.
    """

    _tfdist_is_distributed = True

    def __init__(self, strategy, dataset):
        self._strategy = strategy
        self._dataset = dataset

    @property
    def element_spec(self):
        return self._dataset.element_spec

    def cardinality(self):
        return tf.constant(tf.data.UNKNOWN_CARDINALITY, tf.int64)

    def __iter__(self):
        return _InStepIterator(self._strategy, self._dataset)


class _InStepIterator:
    def __init__(self, strategy, dataset):
        self._strategy = strategy
        self._iterator = iter(dataset)
        self._spec = dataset.element_spec

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._iterator, None)
        mine = tf.constant([0 if batch is None else 1], tf.int32)
        (anybody,) = self._strategy.all_reduce([mine], "max", name="more data")
        if not int(anybody[0]):
            raise StopIteration
        return self._empty() if batch is None else batch

    get_next = __next__

    def _empty(self):
        return tf.nest.map_structure(_without_rows, self._spec)


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
            auto_shard_policy=tf.data.experimental.AutoShardPolicy.FILE.value,
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
