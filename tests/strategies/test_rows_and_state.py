import numpy as np
import pytest
import tensorflow as tf

from tfdist.strategies import rows, state

_NONE, _SUM = tf.VariableAggregation.NONE, tf.VariableAggregation.SUM


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (((np.zeros((3, 2)), np.zeros(4)),), 3),
        ((tf.zeros([]), tf.zeros([5])), 5),
        ((tf.RaggedTensor.from_row_lengths([1.0], [1, 0, 0]),), 3),
        ((tf.sparse.from_dense(np.eye(4)),), 4),
        (({"b": tf.zeros([2]), "a": tf.zeros([7])},), 7),
        ((1.0, "text", None), 1),
        ((), 1),
    ],
)
def test_count_rows(args, expected):
    assert int(rows.count_rows(args, {})) == expected


def test_rows_known_only_when_run_may_be_none():
    @tf.function(input_signature=[tf.TensorSpec([None, 2])])
    def count(x):
        found = rows.count_rows((x,), {})
        assert rows.may_be_empty(found)
        return found

    assert int(count(tf.zeros([0, 2]))) == 0
    assert rows.may_be_empty(0) and not rows.may_be_empty(3)


def test_empty_leaves_become_one_row_of_zeros():
    batch = {
        "x": tf.zeros([0, 3]),
        "text": tf.constant([], tf.string, [0]),
        "ragged": tf.RaggedTensor.from_row_lengths(tf.constant([], tf.float32), tf.constant([], tf.int64)),
        "sparse": tf.SparseTensor(tf.zeros([0, 2], tf.int64), tf.constant([], tf.float32), [0, 4]),
        "full": tf.ones([2]),
        "scalar": tf.constant(4.0),
    }
    padded = rows.pad_empty(batch)
    assert padded["x"].shape == (1, 3) and not np.any(padded["x"])
    assert padded["text"].numpy().tolist() == [b""]
    assert padded["ragged"].to_list() == [[]]
    assert tf.sparse.to_dense(padded["sparse"]).shape == (1, 4)
    assert padded["full"].shape == (2,) and float(padded["scalar"]) == 4.0

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def pad(x):
        result = rows.pad_empty(x)
        assert result.shape.as_list() == [None, 3]
        return result

    assert pad(tf.zeros([0, 3])).shape == (1, 3)
    assert np.array_equal(pad(tf.ones([2, 3])), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (dict(initial_value=1.0), None),
        (dict(initial_value=1.0, trainable=False), "mean"),
        (dict(initial_value=1.0, trainable=False, aggregation=_SUM), "sum"),
        (dict(initial_value=1, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA), "first"),
        (dict(initial_value=1, trainable=False), None),
        (dict(initial_value=[1.0, 0.0], trainable=False, name="seed_generator_state"), None),
    ],
)
def test_rule_of_a_variable(arguments, expected):
    assert state.rule_of(tf.Variable(**arguments)) == expected


def test_a_metric_fed_one_number_counts_batches():
    variable = tf.Variable(0.0, trainable=False, aggregation=_SUM)
    state.count_batches(variable, True)
    assert state.rule_of(variable) == "batch"
    state.count_batches(variable, False)
    assert state.rule_of(variable) == "sum"


def test_watch_sees_every_way_of_writing():
    seen = []
    variable = tf.Variable([1.0, 2.0], trainable=False)
    state.watch(variable, lambda: seen.append(1))
    variable.assign([3.0, 4.0])
    variable.assign_add([1.0, 1.0])
    variable.assign_sub([1.0, 1.0])
    variable.scatter_update(tf.IndexedSlices(tf.constant([9.0]), tf.constant([0])))
    variable.scatter_nd_update([[1]], [8.0])
    assert len(seen) == 5
    assert variable.numpy().tolist() == [9.0, 8.0]


def test_mask_removes_even_nan():
    tensor = tf.constant([np.nan, 1.0])
    assert state.mask(True, tensor) is tensor
    assert state.mask(tf.constant(False), tensor).numpy().tolist() == [0.0, 0.0]
    slices = state.mask(tf.constant(False), tf.IndexedSlices(tensor, tf.constant([3, 4]), tf.constant([9])))
    assert slices.values.numpy().tolist() == [0.0, 0.0] and slices.indices.numpy().tolist() == [3, 4]
