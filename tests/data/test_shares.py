import pytest
import tensorflow as tf

from tfdist.data import permutation, shares
from tfdist.data.shares import Shares


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "world_size", "expected"),
    [
        (12, 4, 2, Shares.EQUAL),
        (14, 4, 2, Shares.EQUAL),
        (13, 4, 2, Shares.UNKNOWN),
        (15, 4, 2, Shares.FILLED),
        (12, 3, 2, Shares.FILLED),
        (12, 3, 4, Shares.UNKNOWN),
        (2, 8, 2, Shares.EQUAL),
        (0, 8, 2, Shares.UNKNOWN),
    ],
)
def test_shares_of_array_data(num_rows, batch_size, world_size, expected):
    sizes = permutation.batch_sizes(num_rows, batch_size)
    assert shares.of_sizes(sizes, world_size) is expected
    # The promise against what the workers really get.
    starts = range(0, num_rows, batch_size)
    real = [
        [
            stop - start
            for start, stop in (
                permutation.share(min(batch_size, num_rows - first), rank, world_size) for rank in range(world_size)
            )
        ]
        for first in starts
    ]
    if expected is Shares.EQUAL:
        assert all(len(set(rows)) == 1 and rows[0] > 0 for rows in real)
    if expected is Shares.FILLED:
        assert all(min(rows) > 0 for rows in real)


def test_shares_of_a_dataset_need_batches_of_one_known_size():
    dataset = tf.data.Dataset.range(8)
    assert shares.of_spec(dataset.batch(4, drop_remainder=True).element_spec, 2) is Shares.EQUAL
    assert shares.of_spec(dataset.batch(3, drop_remainder=True).element_spec, 2) is Shares.FILLED
    assert shares.of_spec(dataset.batch(4).element_spec, 2) is Shares.UNKNOWN
    assert shares.of_spec((tf.TensorSpec([4, 2]), tf.TensorSpec([8])), 2) is Shares.UNKNOWN
    assert shares.of_spec((tf.TensorSpec([4, 2]), tf.TensorSpec([])), 2) is Shares.EQUAL
    assert shares.of_spec(tf.TensorSpec(None), 2) is Shares.UNKNOWN
    assert shares.of_spec(tf.TensorSpec([]), 2) is Shares.UNKNOWN
    assert shares.of_spec(tf.SparseTensorSpec([None, 4]), 2) is Shares.UNKNOWN


def test_the_promise_belongs_to_the_iterator():
    dataset = shares.promise(tf.data.Dataset.range(2), Shares.EQUAL)
    assert shares.promised(iter(shares.Promising(dataset))) is Shares.EQUAL
    assert shares.promised(dataset.map(lambda x: x)) is Shares.UNKNOWN
    assert shares.promised(batch for batch in dataset) is Shares.UNKNOWN


def test_a_call_knows_what_its_own_iterator_promises():
    class Iterator:
        pass

    equal = shares.promise(Iterator(), Shares.EQUAL)
    assert shares.call(lambda _: (shares.current(), shares.call(lambda _: shares.current(), Iterator())), equal) == (
        Shares.EQUAL,
        Shares.UNKNOWN,
    )
    assert shares.current() is Shares.UNKNOWN
