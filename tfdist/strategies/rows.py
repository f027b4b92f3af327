"""Rows of a batch: how many there are, and a stand-in for none."""

import numpy as np
import tensorflow as tf


def count_rows(args, kwargs):
    """Returns the first dimension of the first batched leaf, an int or an int64 scalar; 1 where there is none."""
    for leaf in tf.nest.flatten((args, kwargs)):
        if isinstance(leaf, tf.RaggedTensor):
            return _static(leaf.shape[0]) or tf.cast(leaf.nrows(), tf.int64)
        if isinstance(leaf, tf.SparseTensor):
            return tf.cast(leaf.dense_shape[0], tf.int64)
        if isinstance(leaf, np.ndarray) and leaf.ndim:
            return leaf.shape[0]
        if tf.is_tensor(leaf) and isinstance(leaf, tf.Tensor) and leaf.shape.rank != 0:
            if leaf.shape.rank is None:
                continue
            size = leaf.shape[0]
            return int(size) if size is not None else tf.shape(leaf, out_type=tf.int64)[0]
    return 1


def may_be_empty(rows):
    """Returns whether a batch of `rows` rows can turn out to hold none."""
    return tf.is_tensor(rows) or rows == 0


def pad_empty(structure):
    """Returns `structure` with every leaf of zero rows replaced by one row of zeros.

    Kernels and layers may refuse an empty batch; whatever the row of zeros computes is thrown away later.
    """
    return tf.nest.map_structure(_pad, structure)


def _pad(leaf):
    if isinstance(leaf, tf.RaggedTensor):
        missing = tf.cast(tf.equal(leaf.nrows(), 0), leaf.row_splits.dtype)
        splits = tf.concat([leaf.row_splits, tf.fill([missing], leaf.row_splits[-1])], axis=0)
        return tf.RaggedTensor.from_row_splits(leaf.values, splits, validate=False)
    if isinstance(leaf, tf.SparseTensor):
        shape = tf.concat([tf.maximum(leaf.dense_shape[:1], 1), leaf.dense_shape[1:]], axis=0)
        padded = tf.SparseTensor(leaf.indices, leaf.values, shape)
        if leaf.shape.rank is not None:
            padded.set_shape([None, *leaf.shape[1:]])  # layers are built from it
        return padded
    if not isinstance(leaf, tf.Tensor) or leaf.shape.rank in (0, None) or leaf.shape[0] not in (0, None):
        return leaf
    tail = leaf.shape[1:]

    def zeros():
        shape = tf.concat([[1], tf.shape(leaf)[1:]], axis=0)
        return tf.fill(shape, "") if leaf.dtype == tf.string else tf.zeros(shape, leaf.dtype)

    if leaf.shape[0] == 0:
        padded = zeros()
        padded.set_shape([1, *tail])
        return padded
    padded = tf.cond(tf.equal(tf.shape(leaf)[0], 0), zeros, lambda: leaf)
    padded.set_shape([None, *tail])
    return padded


def _static(size):
    return None if size is None else int(size)
