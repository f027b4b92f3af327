"""Rows taken out of arrays: only those that are asked for are read, and the arrays are never copied as a whole."""

import numpy as np
import tensorflow as tf

BLOCK_BYTES = 4 << 20  # so that a Python call serves several batches
_ALIGNMENT = 64  # TensorFlow takes over NumPy's memory only where it is so aligned
_NUMBERS = "biufc"


def as_source(array):
    """Returns `array` in the form that rows are taken from: numbers where they lie, anything else as a tensor."""
    if isinstance(array, np.ndarray) and array.dtype.kind in _NUMBERS and array.ndim:
        return array
    with tf.device("/device:CPU:0"):
        return tf.convert_to_tensor(array)


def batches_per_block(arrays, batch_rows):
    """Returns how many batches of `batch_rows` rows of all `arrays` are gathered at once, at least 1."""
    row_bytes = sum(int(np.prod(array.shape[1:])) * _item_bytes(array) for array in arrays)
    return max(1, BLOCK_BYTES // max(1, batch_rows * row_bytes))


def gatherer(arrays):
    """Returns a function of a tensor of row numbers, for use in an input pipeline.

    Args:
      arrays: list of NumPy arrays or tensors, see `as_source`.

    Returns:
      A function that takes an int64 tensor of shape S and returns a list of tensors, of shape `S + array.shape[1:]` each.
    """
    numbers = [array for array in arrays if isinstance(array, np.ndarray)]

    def take_all(rows):
        return [take(array, rows) for array in numbers]

    def gather(rows):
        taken = tf.numpy_function(take_all, [rows], [array.dtype for array in numbers]) if numbers else []
        for tensor, array in zip(taken, numbers):
            tensor.set_shape([*rows.shape, *array.shape[1:]])
        taken = iter(taken)
        return [next(taken) if isinstance(array, np.ndarray) else tf.gather(array, rows) for array in arrays]

    return gather


def take(array, rows):
    """Returns `array[rows]` in memory that TensorFlow can take over without copying it."""
    shape = (*rows.shape, *array.shape[1:])
    size = int(np.prod(shape)) * array.dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    result = memory[start : start + size].view(array.dtype).reshape(shape)
    # The mode does not matter, all rows exist; without one NumPy would gather into a buffer and copy that.
    np.take(array, rows, axis=0, out=result, mode="clip")
    return result


def _item_bytes(array):
    return array.dtype.itemsize if isinstance(array, np.ndarray) else array.dtype.size
