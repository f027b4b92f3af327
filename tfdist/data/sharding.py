"""`tf.data` on several workers: every worker takes its rows of the same global batches."""

import tensorflow as tf

from tfdist.data import dealing, pipeline, randomness, shares, uneven

_POLICY = tf.data.experimental.AutoShardPolicy
_MARK = "_tfdist_is_distributed"


def mark(dataset, known=shares.Shares.UNKNOWN):
    """Marks `dataset` as holding this worker's rows only, of batches of which `known` holds."""
    setattr(dataset, _MARK, True)
    return shares.promise(dataset, known)


def distribute(strategy, dataset):
    """Returns this worker's part of `dataset`, batched to the global batch size.

    Under the policies AUTO and DATA every worker iterates the same batches and keeps a contiguous share of the rows of
    each, so that the union is what one process sees, in the same batches. Under OFF the dataset is this worker's own.

    Args:
      strategy: the strategy, for rank, world size and agreement.
      dataset: a `tf.data.Dataset` of batches.

    Returns:
      A `tf.data.Dataset`, or an iterable of batches where workers may run out of data at different times.
    """
    if _is_left_alone(strategy, dataset):
        return dataset
    if uneven.is_own(dataset):
        return uneven.InStep(strategy, dataset)
    policy = uneven.policy_of(dataset)
    if policy == _POLICY.OFF:
        return uneven.InStep(strategy, uneven.rebatch(dataset, strategy))
    if policy == _POLICY.FILE:
        return uneven.InStep(strategy, uneven.rebatch(uneven.shard_files(dataset, strategy), strategy))
    randomness.check_alike(strategy, dataset)
    index, count = strategy.share_of_data
    return mark(share_rows(dataset, index, count), shares.of_spec(dataset.element_spec, count))


def divides_batches(strategy, dataset):
    """Returns whether every worker iterates the same batches of `dataset`, and keeps its rows of each."""
    if _is_left_alone(strategy, dataset) or uneven.is_own(dataset):
        return False
    if uneven.policy_of(dataset) in (_POLICY.OFF, _POLICY.FILE):
        return False
    randomness.check_alike(strategy, dataset)
    return True


def _is_left_alone(strategy, dataset):
    is_marked = isinstance(dataset, tf.data.Dataset) and randomness.is_marked(dataset, _MARK)
    return strategy.world_size == 1 or not isinstance(dataset, tf.data.Dataset) or is_marked


def deal(strategy, dataset, *, deals=True, look_first=False):
    """Returns this worker's batches of `dataset`, for workers that go at their own pace: each batch is one worker's step.

    Those that whoever is free takes next where that is possible (`tfdist.data.dealing`), otherwise every P-th; under OFF
    the dataset is this worker's own, under FILE its share of the files.

    Args:
      strategy: the strategy.
      dataset: a `tf.data.Dataset` of batches.
      deals: bool; False takes every P-th in any case.
      look_first: see `dealing.dealt`.
    """
    is_done = randomness.is_marked(dataset, _MARK) or dealing.is_dealt(dataset)
    if strategy.world_size == 1 or not isinstance(dataset, tf.data.Dataset) or is_done or uneven.is_own(dataset):
        return dataset
    policy = uneven.policy_of(dataset)
    if policy == _POLICY.OFF:
        return mark(dataset)
    if policy == _POLICY.FILE:
        return mark(uneven.shard_files(dataset, strategy))
    randomness.check_alike(strategy, dataset)
    dataset = strategy.in_batches_of_step(dataset)
    if deals and dealing.is_wanted(dataset):
        return dealing.dealt(dataset, strategy.dealer(), look_first)
    return mark(dataset.shard(strategy.world_size, strategy.rank))


def keep_in_step(strategy, dataset):
    """Returns a worker's own `dataset` so that it ends only when every worker's has ended.

    Where all workers have equally many batches, or endlessly many, that is the dataset itself.
    """
    if strategy.world_size == 1:
        return dataset
    length = int(dataset.cardinality())
    if strategy.is_common(length) and length != tf.data.UNKNOWN_CARDINALITY:
        return mark(dataset)
    return uneven.InStep(strategy, dataset)


def share_rows(dataset, rank, world_size, *, any_share=False):
    """Returns `dataset` with every batch cut to the rows of `rank`; the number of batches stays the same.

    With `any_share` its specification is that of any worker of any number.
    """

    @tf.autograph.experimental.do_not_convert
    def cut(*batch):
        return _cut(batch, rank, world_size, any_share)

    shared = pipeline.parallel_map(dataset, cut)
    options = tf.data.Options()
    options.deterministic = True  # workers must see the same batches in the same order
    shared = shared.with_options(options)
    return shared if pipeline.has_one_core() else shared.prefetch(tf.data.AUTOTUNE)


def _cut(batch, rank, world_size, any_share=False):
    batch = batch[0] if len(batch) == 1 else batch
    return tf.nest.map_structure(lambda leaf: _rows(leaf, rank, world_size, any_share), batch)


def _rows(leaf, rank, world_size, any_share):
    if isinstance(leaf, tf.SparseTensor):
        start, size = _share(leaf.dense_shape[0], rank, world_size)
        begin = tf.concat([[start], tf.zeros_like(leaf.dense_shape[1:])], axis=0)
        cut = tf.sparse.slice(leaf, begin, tf.concat([[size], leaf.dense_shape[1:]], axis=0))
        if leaf.shape.rank is not None:
            cut.set_shape([None, *leaf.shape[1:]])
        return cut
    if isinstance(leaf, tf.RaggedTensor):
        start, size = _share(leaf.nrows(tf.int64), rank, world_size)
        return leaf[start : start + size]
    if not isinstance(leaf, tf.Tensor) or leaf.shape.rank == 0:
        return leaf
    start, size = _share(tf.shape(leaf, out_type=tf.int64)[0], rank, world_size)
    cut = leaf[start : start + size]
    if leaf.shape.rank is None:
        return cut
    if any_share:
        return tf.compat.v1.placeholder_with_default(cut, [None, *leaf.shape[1:]])  # forgets what was inferred
    if leaf.shape[0] is not None:
        num_rows = int(leaf.shape[0])
        cut.set_shape([num_rows // world_size + (rank < num_rows % world_size), *leaf.shape[1:]])
    return cut


def _share(num_rows, rank, world_size):
    """Returns `(start, size)`, as `permutation.share`, for a number of rows that is a tensor."""
    base, extra = num_rows // world_size, num_rows % world_size
    return rank * base + tf.minimum(tf.cast(rank, tf.int64), extra), base + tf.cast(rank < extra, tf.int64)
