"""Rows taken out of arrays: only those that are asked for are read, and the arrays are never copied as a whole."""

import sys
import threading

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
    pool = Pool()

    def take_all(rows):
        return [take(array, rows, pool) for array in numbers]

    def gather(rows):
        taken = tf.numpy_function(take_all, [rows], [array.dtype for array in numbers]) if numbers else []
        for tensor, array in zip(taken, numbers):
            tensor.set_shape([*rows.shape, *array.shape[1:]])
        taken = iter(taken)
        return [next(taken) if isinstance(array, np.ndarray) else tf.gather(array, rows) for array in arrays]

    return gather


def take(array, rows, pool):
    """Returns `array[rows]` in memory of `pool`, which TensorFlow takes over without copying it."""
    result = pool.empty((*rows.shape, *array.shape[1:]), array.dtype)
    # The mode does not matter, all rows exist; without one NumPy would gather into a buffer and copy that.
    np.take(array, rows, axis=0, out=result, mode="clip")
    return result


class Pool:
    """Memory that is used again once nobody looks at it any more: the first touch of fresh memory costs more than a gather.

    Thread-safe; never blocks for long.
    """

    _MOST = 16  # so many blocks are kept

    def __init__(self):
        self._lock = threading.Lock()  # from finding a block unused until a view holds it
        self._blocks = []

    def empty(self, shape, dtype):
        """Returns an uninitialised array that begins where TensorFlow wants its memory to begin."""
        size = int(np.prod(shape)) * dtype.itemsize
        with self._lock:
            memory = self._unused(size + _ALIGNMENT)
            start = -memory.ctypes.data % _ALIGNMENT
            return memory[start : start + size].view(dtype).reshape(shape)

    def _unused(self, size):
        for memory in self._blocks:
            if memory.size == size and sys.getrefcount(memory) == _NOBODY:
                return memory
        memory = np.empty(size, np.uint8)
        self._blocks = [memory, *self._blocks[: self._MOST - 1]]
        return memory


def _references_to_nobodys():
    blocks = [np.empty(0, np.uint8)]
    for memory in blocks:
        return sys.getrefcount(memory)


# What `Pool._unused` counts for a block of which there is no view; how many that are is up to the interpreter.
_NOBODY = _references_to_nobodys()


def _item_bytes(array):
    return array.dtype.itemsize if isinstance(array, np.ndarray) else array.dtype.size
