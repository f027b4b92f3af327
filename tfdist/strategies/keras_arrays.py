"""Array input: the order of an epoch is drawn alike on all workers, and each gathers only its own rows."""

import keras
import numpy as np
import tensorflow as tf

from tfdist.data import dealing, permutation, recut, rows, sharding, shares


def get_tf_dataset(original, adapter):
    """Stands in for Keras's `ArrayDataAdapter.get_tf_dataset`.

    Keras has checked, converted and weighted the arrays by now; only the order and the cutting into batches is ours.
    Inputs that are not dense tensors are left to Keras, and cut by rows afterwards.
    """
    from tfdist.strategies import keras_trainer

    call = keras_trainer.current_call()
    if call is None or call.strategy.world_size == 1:
        return original(adapter)
    inputs = _dense_inputs(adapter)
    if inputs is None:
        return original(adapter)
    if call.deals_next():
        return _dealt(call, adapter, inputs)
    if call.strategy.elastic is not None:
        source = recut.Arrays(inputs, adapter._num_samples, adapter.batch_size, adapter._shuffle, call.seed)
        return recut.Recutting(call.strategy, arrays=source)
    dataset = permutation.batches(
        inputs,
        num_rows=adapter._num_samples,
        batch_size=adapter.batch_size,
        shuffle=adapter._shuffle,
        seed=call.seed,
        rank=call.strategy.rank,
        world_size=call.strategy.world_size,
    )
    sizes = permutation.batch_sizes(adapter._num_samples, adapter.batch_size)
    return sharding.mark(dataset, shares.of_sizes(sizes, call.strategy.world_size))


def _dealt(call, adapter, inputs):
    """Batches of one worker's step each, dealt to whoever is free."""
    strategy = call.strategy
    adapter._size = None  # nobody knows how many will be ours
    return dealing.dealt_batches(
        inputs,
        num_rows=adapter._num_samples,
        batch_size=strategy.batch_of_step(adapter.batch_size),
        shuffle=adapter._shuffle,
        seed=call.seed,
        dealer=strategy.dealer(),
        look_first=True,
    )


def _dense_inputs(adapter):
    """Returns the adapter's arrays as sources of rows, or None where one of them is sparse or ragged."""
    from keras.src.trainers.data_adapters import array_slicing  # not public: conversion of pandas, floatx, strings

    inputs = array_slicing.convert_to_sliceable(adapter._inputs, target_backend="tensorflow")
    inputs = keras.tree.lists_to_tuples(inputs)
    if any(leaf is not None and not _is_dense(leaf) for leaf in keras.tree.flatten(inputs)):
        return None
    return keras.tree.map_structure(lambda leaf: None if leaf is None else rows.as_source(leaf), inputs)


def _is_dense(leaf):
    return isinstance(leaf, tf.Tensor) or (isinstance(leaf, np.ndarray) and leaf.dtype != object)
