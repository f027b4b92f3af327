import numpy as np
import pytest
import tensorflow as tf

from tfdist.data import permutation, rows


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8", "int64", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_rows_are_taken_into_memory_that_tensorflow_takes_over(dtype, shape):
    array = (np.arange(7 * np.prod(shape, dtype=int)) % 5).astype(dtype).reshape(7, *shape)
    for numbers in (np.array([6, 0, 3]), np.array([[1, 2], [5, 5]]), np.zeros((2, 0), int)):
        taken = rows.take(array, numbers, rows.Pool())
        assert taken.dtype == array.dtype and np.array_equal(taken, array[numbers])
        assert not taken.size or taken.ctypes.data % 64 == 0


def test_rows_of_a_strided_array():
    array = np.arange(24.0).reshape(6, 4)[:, ::2]
    assert rows.take(array, np.array([5, 1]), rows.Pool()).tolist() == [[20.0, 22.0], [4.0, 6.0]]


def test_numbers_stay_where_they_lie():
    numbers = np.zeros((4, 2))
    assert rows.as_source(numbers) is numbers
    assert isinstance(rows.as_source(np.array(["a", "b"])), tf.Tensor)
    tensor = tf.zeros([4])
    assert rows.as_source(tensor) is tensor


@pytest.mark.parametrize(("batch_rows", "expected"), [(1, 1024), (32, 32), (1024, 1), (5000, 1), (0, 4 << 20)])
def test_blocks_hold_whole_batches(batch_rows, expected):
    assert rows.batches_per_block([np.zeros((9, 500)), tf.zeros([9, 24])], batch_rows) == expected


@pytest.mark.parametrize("block_bytes", [1, 100, 4 << 20])
def test_a_worker_reads_only_its_own_rows(block_bytes, monkeypatch):
    read, take = {0: [], 1: []}, rows.take
    x = np.arange(37 * 3.0).reshape(37, 3)
    monkeypatch.setattr(rows, "BLOCK_BYTES", block_bytes)
    for rank, seen in read.items():

        def recording(array, numbers, pool, seen=seen):
            seen.extend(numbers.ravel())
            return take(array, numbers, pool)

        monkeypatch.setattr(rows, "take", recording)
        dataset = permutation.batches(
            (x, tf.constant(x)), num_rows=37, batch_size=8, shuffle=True, seed=[3], rank=rank, world_size=2
        )
        for first, second in dataset:
            assert np.array_equal(first, second) and len(first) in (2, 3, 4)
    assert sorted(read[0] + read[1]) == list(range(37))


def test_memory_is_used_again_when_nobody_looks_at_it():
    pool, dtype = rows.Pool(), np.dtype("float32")
    first = pool.empty((3, 4), dtype)
    place, part = first.ctypes.data, first[1:]
    assert pool.empty((3, 4), dtype).ctypes.data != place
    del first
    assert pool.empty((3, 4), dtype).ctypes.data != place  # a part of it is in use
    del part
    assert place in {array.ctypes.data for array in [pool.empty((4, 3), np.dtype("int32")) for _ in range(2)]}


def test_batches_that_are_kept_do_not_change(monkeypatch):
    x = np.arange(4000.0).reshape(1000, 4)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1024)
    dataset = permutation.batches(
        (x, tf.constant(x)), num_rows=1000, batch_size=8, shuffle=True, seed=[3], rank=0, world_size=1
    )
    for first, second in list(dataset) + list(dataset):
        assert np.array_equal(first, second)
