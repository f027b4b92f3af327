"""The native engine against NumPy: every dtype, operation and awkward size."""

import numpy as np
import pytest

from tfdist.comm import Group, local
from tfdist.errors import ConfigurationError, MismatchError

ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes, which comes with TensorFlow")

DTYPES = ["float32", "float64", "bfloat16", "float16", "int32", "int64"]
OPERATIONS = {"sum": np.add, "mean": np.add, "min": np.minimum, "max": np.maximum, "product": np.multiply}
LARGER_THAN_A_SEGMENT = 200_003


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def array(rank, size, dtype):
    """Every element on every rank distinct, small enough to be exact in all dtypes."""
    return ((np.arange(size) % 7) + rank + 1).astype(dtype_of(dtype))


def reference(op, arrays):
    result = arrays[0].astype(np.float64)
    for other in arrays[1:]:
        result = OPERATIONS[op](result, other.astype(np.float64))
    if op == "mean":
        result = result / len(arrays)
        if arrays[0].dtype.kind == "i":
            result = np.trunc(result)
    return result.astype(arrays[0].dtype)


def sizes(world_size):
    return [0, 1, world_size - 1, world_size, world_size + 1, 1009, LARGER_THAN_A_SEGMENT]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_reduce(world_size, dtype):
    def body(group):
        for op in OPERATIONS:
            for size in sizes(world_size):
                arrays = [array(rank, size, dtype) for rank in range(world_size)]
                result = group.all_reduce(arrays[group.rank], op)
                np.testing.assert_array_equal(result, reference(op, arrays), err_msg=f"{op} of {size}")
                assert result.dtype == arrays[0].dtype

    local.run(world_size, body)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_all_reduce_gives_the_same_bits_on_every_rank(dtype):
    def body(group):
        random = np.random.default_rng(group.rank)
        return group.all_reduce(random.normal(size=50_021).astype(dtype_of(dtype)), "mean").tobytes()

    results = local.run(3, body)
    assert results[0] == results[1] == results[2]


def test_all_reduce_keeps_the_argument_and_its_shape():
    def body(group):
        mine = np.full((3, 4), group.rank, np.float32)[:, ::2]
        result = group.all_reduce(mine)
        assert result.shape == (3, 2) and (mine == group.rank).all()

    local.run(2, body)


def test_nan_and_infinity_are_seen_by_all():
    def body(group):
        mine = np.array([1.0, np.nan if group.rank else 1.0, np.inf], np.float32)
        for op in ("sum", "min", "max"):
            result = group.all_reduce(mine, op)
            assert np.isnan(result[1]) and np.isinf(result[2])

    local.run(2, body)


def test_half_precision_rounds_to_nearest_even():
    values = {
        "float16": [2048.0, 1.0, 65504.0, 6e-8, 3.1e-5, 65504.0],
        "bfloat16": [256.0, 1.0, 3.3e38, 1e-40, 2.0, 3.3e38],
    }
    for dtype, numbers in values.items():
        mine = np.array(numbers, dtype_of(dtype))
        other = np.array([1.0, 2.0**-11, 16.0, 6e-8, 3.1e-5, 65504.0], dtype_of(dtype))

        def body(group, pair=(mine, other)):
            return group.all_reduce(pair[group.rank])

        expected = (mine.astype(np.float32) + other.astype(np.float32)).astype(dtype_of(dtype))
        for result in local.run(2, body):
            assert result.tobytes() == expected.tobytes(), dtype


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_broadcast_gather_scatter_exchange(world_size):
    def body(group):
        for size in sizes(world_size):
            for root in range(world_size):
                got = group.broadcast(array(group.rank, size, "int64"), root)
                np.testing.assert_array_equal(got, array(root, size, "int64"))
            uneven = [np.full((size * (r % 2) + r, 3), r, np.float32) for r in range(world_size)]
            np.testing.assert_array_equal(group.all_gather(uneven[group.rank]), np.concatenate(uneven))
            rows = np.arange(size * 2.0).reshape(size, 2) + group.rank
            whole = sum(np.arange(size * 2.0).reshape(size, 2) + r for r in range(world_size))
            low, high = size * group.rank // world_size, size * (group.rank + 1) // world_size
            np.testing.assert_array_equal(group.reduce_scatter(rows), whole[low:high])
            parts = np.repeat(np.arange(world_size) + 10 * group.rank, size)
            expected = np.repeat(np.arange(world_size) * 10 + group.rank, size)
            np.testing.assert_array_equal(group.all_to_all(parts), expected)
        group.barrier()

    local.run(world_size, body)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "complex128", "S5"])
def test_what_cannot_be_reduced_still_moves(dtype):
    def body(group):
        mine = np.array([group.rank, 1, 2]).astype(dtype)
        assert (group.broadcast(mine, 1) == np.array([1, 1, 2]).astype(dtype)).all()
        assert group.all_gather(mine).shape == (6,)

    local.run(2, body)


def test_all_gather_bytes_of_unequal_lengths():
    assert local.run(3, lambda group: group.all_gather_bytes(b"x" * group.rank))[0] == [b"", b"x", b"xx"]


def test_agree_names_key_rank_and_both_values():
    def body(group):
        group.agree("the settings", {"a": 1, "b": [1, 2]})
        with pytest.raises(MismatchError, match=r"the settings.*batch_size=32 on rank 0, batch_size=64 on rank 1"):
            group.agree("the settings", {"a": 1, "batch_size": 64 if group.rank else 32})
        assert group.all_reduce(np.ones(1))[0] == 2  # a disagreement of values leaves the group whole

    local.run(2, body)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda g: g.all_reduce(np.ones(2, np.uint8)), r"can be reduced \(float32.*Received: dtype=uint8"),
        (lambda g: g.all_reduce(np.ones(2), "median"), r"op is expected to be one of sum.*op='median'"),
        (lambda g: g.broadcast(np.ones(2), 7), r"root is expected to be in \[0, 1\). Received: root=7"),
        (lambda g: g.broadcast(np.array([object()])), "fixed size"),
        (lambda g: g.all_gather(np.float32(1)), "at least one dimension"),
        (lambda g: Group(2, 2), r"rank=2, world_size=2"),
        (lambda g: Group(0, 1, timeout=0), "timeout is expected to be > 0"),
    ],
)
def test_bad_input_gets_one_line(call, text):
    with pytest.raises(ConfigurationError, match=text):
        call(Group(0, 1))


def test_all_to_all_needs_equal_parts():
    def body(group):
        with pytest.raises(ConfigurationError, match="divisible by world_size=2"):
            group.all_to_all(np.ones(3))

    local.run(2, body)


def test_many_operations_in_a_row_are_not_mixed_up():
    def body(group):
        for i in range(300):
            assert group.all_reduce(np.full(i % 5 + 1, i + group.rank, np.int64))[0] == 3 * i + 3

    local.run(3, body)
