"""Collectives inside TensorFlow, eager and in graphs; ranks are threads that share one TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from tfdist.comm import failures, library, local
from tfdist.errors import ConfigurationError, MismatchError
from tfdist.strategies import graph_bridge as bridge

# All ranks' waits block threads of one TensorFlow here; in real life each process has its own.
tf.config.threading.set_inter_op_parallelism_threads(16)

WORLD_SIZES = [1, 2, 3]


def value(rank, shape, dtype=tf.float32):
    return tf.cast(tf.reshape(tf.range(int(np.prod(shape))), shape) + rank, dtype)


def each_way(function, *arguments):
    """The results of calling eagerly, in a tf.function, and in the same tf.function again."""
    graph = tf.function(function, autograph=False)
    return [function(*arguments), graph(*arguments), graph(*arguments)]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.bfloat16, tf.float16, tf.int32, tf.int64])
def test_all_reduce(world_size, dtype):
    def body(group):
        tensors = [value(group.rank, shape, dtype) for shape in [(), (3,), (2, 5), (0, 4)]]
        for op, reference in [("sum", np.sum), ("min", np.min), ("max", np.max)]:
            for results in each_way(lambda *t, op=op: bridge.all_reduce(t, op, group=group), *tensors):
                for result, tensor in zip(results, tensors):
                    ranks = [value(r, tensor.shape, tf.float64).numpy() for r in range(world_size)]
                    np.testing.assert_array_equal(tf.cast(result, tf.float64), reference(ranks, axis=0))
                    assert result.dtype == dtype and result.shape == tensor.shape

    local.run(world_size, body)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_weighted_mean_and_a_rank_without_rows(world_size):
    def body(group):
        rows = [3.0, 0.0, 1.0][group.rank]
        mine = tf.constant([np.nan, np.inf]) if rows == 0 else tf.constant([group.rank + 1.0, 8.0])
        expected = sum(w * (r + 1) for r, w in enumerate([3.0, 0.0, 1.0][:world_size])) / sum(
            [3.0, 0.0, 1.0][:world_size]
        )
        for results in each_way(
            lambda t, w: bridge.all_reduce([t], "mean", group=group, weight=w), mine, tf.constant(rows)
        ):
            np.testing.assert_allclose(results[0], [expected, 8.0], rtol=1e-7)

    local.run(world_size, body)


def test_only_what_something_else_needs_is_copied():
    """Large tensors are reduced in their own memory, in one bucket with small ones, which are packed."""

    def body(group):
        @tf.function(autograph=False)
        def program(large, small, needed):
            tensors = [large + 1.0, small + 1.0, needed]
            return bridge.all_reduce(tensors, group=group)

        arguments = [tf.fill([size], group.rank + 0.0) for size in (50_021, 3, 20_000)]
        for reduced, expected in zip(program(*arguments), (3.0, 3.0, 1.0)):
            np.testing.assert_array_equal(reduced, np.full(reduced.shape, expected))
        return library.core().tfdist_group_copied_bytes(group.native)

    assert local.run(2, body) == [4 * (3 + 20_000)] * 2


@pytest.mark.parametrize("weights", [None, (4.0, 4.0, 4.0), (1.0, 2.0, 3.0)])
def test_large_tensors_in_place(weights):
    """Reduced in their own memory, unless somebody else still needs what is there."""

    def body(group):
        weight = None if weights is None else weights[group.rank]
        rows = np.arange(50_021.0)
        factors = [(weights or (1, 1, 1))[r] * (r + 1) for r in range(3)]
        expected = rows * sum(factors) / sum(weights or (1, 1, 1))
        x = tf.constant(rows * (group.rank + 1))

        def reduce_twice(x):
            fresh = x + 0.0
            first = bridge.all_reduce([fresh], "mean", group=group, weight=weight)[0]
            return first, fresh, bridge.all_reduce([fresh], "mean", group=group, weight=weight)[0]

        for first, fresh, second in each_way(reduce_twice, x):
            np.testing.assert_allclose(first, expected, rtol=1e-12)
            np.testing.assert_array_equal(second, first)
            np.testing.assert_array_equal(fresh, x)
            np.testing.assert_array_equal(x, rows * (group.rank + 1))

    local.run(3, body)


def test_gradient_of_the_weighted_mean():
    def body(group):
        x, weight = tf.constant([1.0, 2.0]), tf.constant([1.0, 3.0][group.rank])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = bridge.all_reduce([x * x], "mean", group=group, weight=weight)[0] * (group.rank + 1.0)
        np.testing.assert_allclose(tape.gradient(y, x), 2 * x * (weight / 4) * 3, rtol=1e-6)

    local.run(2, body)


def test_weighted_halves_do_not_overflow():
    def body(group):
        mine = tf.constant([1000.0, -2.0], tf.float16)
        return bridge.all_reduce([mine], "mean", group=group, weight=256)[0].numpy().tolist()

    assert local.run(2, body) == [[1000.0, -2.0]] * 2


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("op", ["sum", "mean"])
def test_gradient_of_all_reduce(world_size, op):
    def body(group):
        x = tf.constant([1.0, 2.0])

        def gradient():
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(bridge.all_reduce([x * x], op, group=group)[0] * (group.rank + 1.0))
            return tape.gradient(loss, x)

        factor = world_size * (world_size + 1) / 2 / (world_size if op == "mean" else 1)
        for result in each_way(gradient):
            np.testing.assert_allclose(result, 2 * x * factor, rtol=1e-6)

    local.run(world_size, body)


def test_maximum_has_no_gradient():
    def body(group):
        x = tf.constant([1.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = bridge.all_reduce([x], "max", group=group)[0]
        with pytest.raises(ConfigurationError, match="gradient for op 'sum' and 'mean'. Received: op='max'"):
            tape.gradient(y, x)

    local.run(2, body)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_all_gather_and_its_gradient(world_size):
    def body(group):
        x = tf.fill([group.rank + 1, 2], group.rank + 1.0)

        def gather():
            with tf.GradientTape() as tape:
                tape.watch(x)
                whole = bridge.all_gather(x, group=group)
                loss = tf.reduce_sum(whole * whole)
            return whole, tape.gradient(loss, x)

        expected = np.concatenate([np.full((r + 1, 2), r + 1.0) for r in range(world_size)])
        for whole, gradient in each_way(gather):
            np.testing.assert_array_equal(whole, expected)
            np.testing.assert_allclose(gradient, 2 * x * world_size)

    local.run(world_size, body)


@pytest.mark.parametrize("dtype", [tf.float32, tf.uint8, tf.bool, tf.complex64, tf.uint32])
def test_broadcast_of_any_dtype(dtype):
    def body(group):
        mine = tf.cast(tf.constant([group.rank, 1]), dtype)
        for result in each_way(lambda t: bridge.broadcast(t, 1, group=group), mine):
            np.testing.assert_array_equal(result, tf.cast([1, 1], dtype))

    local.run(2, body)


def test_gradient_of_broadcast_goes_to_the_root():
    def body(group):
        x = tf.constant([1.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = bridge.broadcast(x, 1, group=group) * (group.rank + 1.0)
        return tape.gradient(y, x).numpy().tolist()

    assert local.run(3, body) == [[0.0], [6.0], [0.0]]


@pytest.mark.parametrize("vocabulary", [4, 1000])
@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_gradients(vocabulary, weighted):
    """The small table is summed densely, the large one gathered; both equal the dense sum."""

    def body(group):
        rank = group.rank
        slices = tf.IndexedSlices(tf.fill([2 + rank, 3], rank + 1.0), tf.range(2 + rank), tf.constant([vocabulary, 3]))
        weight = tf.constant(float(rank + 1)) if weighted else None
        op = "mean" if weighted else "sum"
        expected = np.zeros((vocabulary, 3))
        for r in range(3):
            expected[: 2 + r] += (r + 1) * ((r + 1) / 6 if weighted else 1)

        def reduce():
            return bridge.all_reduce([slices], op, group=group, weight=weight)[0]

        for result in each_way(reduce):
            assert isinstance(result, tf.IndexedSlices)
            np.testing.assert_allclose(tf.convert_to_tensor(result), expected, rtol=1e-6)
            assert (result.values.shape[0] == vocabulary) == (vocabulary == 4)

    local.run(3, body)


def test_collectives_inside_loops_and_branches():
    def body(group):
        @tf.function(autograph=False)
        def program(x):
            def step(i, x):
                x = bridge.all_reduce([x], "mean", group=group, name="loop")[0] + 1.0
                x = tf.cond(i % 2 == 0, lambda: bridge.all_reduce([x], "sum", group=group)[0], lambda: x)
                return i + 1, x

            return tf.while_loop(lambda i, x: i < 5, step, [0, x])[1]

        return program(tf.constant([float(group.rank)])).numpy().tolist()

    results = local.run(2, body)
    assert results[0] == results[1]
    x = 0.5
    for i in range(5):
        x = (x + 1.0) * (2 if i % 2 == 0 else 1)
    assert results[0] == [x]


def test_retracing_on_one_rank_only():
    def body(group):
        @tf.function(autograph=False)
        def program(x, unused):
            return bridge.all_reduce([x, x * 2], "sum", group=group)

        for call in range(4):  # a new Python value means a new trace: on rank 1 each time
            result = program(tf.constant([1.0]), call if group.rank == 1 else 0)
            assert [r.numpy().tolist() for r in result] == [[2.0], [4.0]]

    local.run(2, body)


def test_equal_calls_at_two_places_of_a_graph_do_not_collide():
    def body(group):
        @tf.function(autograph=False)
        def program(x):
            return bridge.all_reduce([x], group=group)[0], bridge.all_reduce([x * 10], group=group)[0]

        first, second = program(tf.constant([group.rank + 1.0]))
        assert (first.numpy(), second.numpy()) == ([3.0], [30.0])

    local.run(2, body)


def test_a_step_skipped_on_one_rank_is_a_mismatch():
    def body(group):
        program = tf.function(lambda step: bridge.all_reduce([tf.ones(3)], group=group, step=step, name="gradients")[0])
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            program(tf.constant(4 - group.rank, tf.int64))
        error = failures.from_tensorflow(caught.value)
        assert isinstance(error, MismatchError)
        assert "gradients" in str(error) and "at step 4" in str(error) and "at step 3" in str(error)

    local.run(2, body)


def test_errors_of_tensorflow_that_are_not_ours_are_left_alone():
    assert failures.from_tensorflow(ValueError("something else")) is None


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda g: bridge.all_reduce([tf.constant([True])], group=g), "can be reduced.*dtype=bool"),
        (lambda g: bridge.all_reduce([tf.constant(["a"])], group=g), "can be reduced.*dtype=string"),
        (lambda g: bridge.all_reduce([tf.constant(1)], "mean", group=g, weight=1), "can be reduced.*dtype=int32"),
        (lambda g: bridge.all_reduce([tf.constant(1.0)], "median", group=g), "op='median'"),
        (lambda g: bridge.all_reduce([tf.constant(1.0)], "sum", group=g, weight=1), "'mean' where weight= is given"),
        (lambda g: bridge.all_gather(tf.constant(1.0), group=g), "at least one dimension"),
    ],
)
def test_bad_input_gets_one_line(call, text):
    def body(group):
        with pytest.raises(ConfigurationError, match=text):
            call(group)

    local.run(2, body)


def test_operations_are_registered_for_gpus_with_their_arguments_in_host_memory():
    from tensorflow.python.framework import kernels

    from tfdist.comm.tensorflow_library import operations

    operations()
    for name, arguments in [
        ("TfdistStart", {"tensors", "scale", "divisor", "step", "offsets", "ticket", "held"}),
        ("TfdistWait", {"tickets", "held", "reduced"}),
    ]:
        registered = {k.device_type: set(k.host_memory_arg) for k in kernels.get_registered_kernels_for_op(name).kernel}
        assert set(registered) == {"CPU", "GPU"}
        assert registered["GPU"] == arguments
