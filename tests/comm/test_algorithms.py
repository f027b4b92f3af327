"""Every all-reduce algorithm against NumPy on both transports, what travels shortened, and who chooses the algorithm."""

import threading

import numpy as np
import pytest

from tests.comm.test_group import DTYPES, OPERATIONS, array, dtype_of, reference
from tfdist.collectives import ALL_REDUCE, Topology
from tfdist.comm import Group, library, local
from tfdist.errors import CollectiveTimeoutError, ConfigurationError, MismatchError

# Awkward for P ranks: nothing, less than P, a prime, larger than a segment.
SIZES = [0, 1, 3, 5, 1009, 70_001]
HOSTS = {2: ((0,), (1,)), 3: ((0, 2), (1,)), 4: ((0, 1), (2, 3)), 5: ((0, 1, 2), (3,), (4,))}
# Unit roundoff of each: half a step of its 8, or 11, binary digits at worst.
WIRE_DTYPES = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


def operand(rank, size, dtype, op):
    """As `array`, but where they are multiplied powers of two: five of the others overflow bfloat16's eight digits."""
    return (
        array(rank, size, dtype) if op != "product" else ((np.arange(size) + rank) % 3 // 2 + 1).astype(dtype_of(dtype))
    )


@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
@pytest.mark.parametrize("algorithm", ALL_REDUCE)
def test_every_algorithm_on_every_dtype(world_size, algorithm):
    def body(group):
        for dtype in DTYPES:
            for op in OPERATIONS:
                for size in SIZES:
                    arrays = [operand(rank, size, dtype, op) for rank in range(world_size)]
                    result = group.all_reduce(arrays[group.rank], op, algorithm=algorithm)
                    np.testing.assert_array_equal(result, reference(op, arrays), err_msg=f"{op} of {size} {dtype}")

    local.run(world_size, body)


@pytest.mark.parametrize("world_size", HOSTS)
@pytest.mark.parametrize("algorithm", ALL_REDUCE)
def test_several_hosts(world_size, algorithm):
    def body(group):
        for size in SIZES:
            arrays = [array(rank, size, "float32") for rank in range(world_size)]
            result = group.all_reduce(arrays[group.rank], "mean", algorithm=algorithm)
            np.testing.assert_array_equal(result, reference("mean", arrays))

    local.run(world_size, body, topology=Topology(HOSTS[world_size]))


@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
@pytest.mark.parametrize("algorithm", ALL_REDUCE)
def test_the_bits_are_the_same_everywhere(world_size, algorithm):
    special = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-40, 1.0], np.float32)

    def body(group):
        random = np.random.default_rng(group.rank)
        numbers = random.normal(size=9001).astype(np.float32)
        mixed = random.choice(special, 4001)
        sums = [
            group.all_reduce(numbers, "mean", algorithm=algorithm, wire_dtype=wire) for wire in (None, *WIRE_DTYPES)
        ]
        ends = [group.all_reduce(mixed.astype(dtype_of(d)), op, algorithm=algorithm)
                for op in ("min", "max") for d in ("float32", "float64", "bfloat16", "float16")]  # fmt: skip
        return [result.tobytes() for result in [*sums, *ends]]

    results = local.run(world_size, body)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
@pytest.mark.parametrize("wire_dtype", WIRE_DTYPES)
@pytest.mark.parametrize("algorithm", ALL_REDUCE)
def test_what_is_rounded_on_the_way_is_as_near_as_promised(world_size, wire_dtype, algorithm):
    arrays = [np.random.default_rng(rank).uniform(1, 2, 5003).astype(np.float32) for rank in range(world_size)]
    exact = sum(a.astype(np.float64) for a in arrays)

    def body(group):
        result = group.all_reduce(arrays[group.rank], wire_dtype=wire_dtype, algorithm=algorithm)
        relative = np.abs(result - exact) / exact
        assert 0 < relative.max() <= world_size * WIRE_DTYPES[wire_dtype] * (1 + 2.0**-6)
        np.testing.assert_array_equal(
            arrays[group.rank], np.random.default_rng(group.rank).uniform(1, 2, 5003).astype("f")
        )

    local.run(world_size, body)


def test_half_the_bytes_must_hold_the_value():
    def body(group):
        result = group.all_reduce(np.array([1e5, 1.0], np.float32), wire_dtype="float16")
        assert np.isinf(result[0]) and result[1] == 2  # 65504 is float16's largest
        return group.all_reduce(np.array([1e5, 1.0], np.float32), wire_dtype="bfloat16")[0]

    assert local.run(2, body)[0] == pytest.approx(2e5, rel=2**-7)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_prepared_all_reduce_works_in_place_again_and_again(world_size):
    def body(group):
        mine, other = np.full((5, 3), group.rank + 1.0), np.zeros(4, np.float32)
        reduce, reduce_other = group.prepare_all_reduce(mine, name="mine"), group.prepare_all_reduce(other)
        total = world_size * (world_size + 1) / 2
        for step in range(20):
            mine[:] = (group.rank + 1.0) * step
            other[:] = step
            reduce()
            reduce_other()
            assert (mine == total * step).all() and (other == world_size * step).all()
            assert group.all_reduce(np.ones(1))[0] == world_size  # others may come between

    local.run(world_size, body)


def test_a_prepared_all_reduce_keeps_its_array():
    def body(group):
        calls = [group.prepare_all_reduce(np.full(1000, float(i))) for i in range(10)]
        for call in calls:
            call()

    local.run(2, body)


def test_a_prepared_all_reduce_is_late_or_disagrees_as_others_do():
    def late(group):
        if group.rank == 0:
            with pytest.raises(CollectiveTimeoutError, match="rank 1.* has not arrived"):
                group.prepare_all_reduce(np.ones(3))()
            done.set()
        else:
            done.wait(20)

    done = threading.Event()
    local.run(2, late, timeout=0.6)

    def differ(group):
        with pytest.raises(MismatchError, match=r"(?s)float32\[2\].*float32\[3\]|float32\[3\].*float32\[2\]"):
            group.prepare_all_reduce(np.ones(2 + group.rank, np.float32))()

    local.run(2, differ)


@pytest.mark.parametrize(
    "differ",
    [
        lambda g: g.all_reduce(np.ones(400), algorithm="ring" if g.rank else "recursive_doubling"),
        lambda g: g.all_reduce(np.ones(400, np.float32), wire_dtype="bfloat16" if g.rank else None),
        lambda g: g.all_reduce(np.ones(400, np.float32), wire_dtype="bfloat16" if g.rank else "float16"),
    ],
    ids=["algorithm", "wire", "wires"],
)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_differ_are_told(world_size, differ):
    def body(group):
        with pytest.raises(MismatchError, match="ranks disagree.* (by ring|sent as bfloat16)"):
            differ(group)
            group.barrier()

    local.run(world_size, body)


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_all_ranks_choose_alike_and_small_is_not_large(world_size):
    def body(group):
        sizes = [0, 4, 4096, 1 << 16, 1 << 20, 1 << 26]
        return [group.algorithm_for(size) for size in sizes], group.bucket_bytes, group.choice.crossovers

    results = local.run(world_size, body)
    assert all(result == results[0] for result in results)
    names, bucket_bytes, _ = results[0]
    assert names[1] == "recursive_doubling" and names[-1] in ("ring", "direct")
    assert 1 << 18 <= bucket_bytes <= 1 << 24


def test_the_choice_by_size_wins_over_nothing_else():
    def body(group):
        assert group.all_reduce_plan(None) == group.all_reduce_plan(1 << 20)
        assert group.all_reduce_plan(4) == group.all_reduce_plan(1 << 26, "recursive_doubling")
        assert group.all_reduce_plan(4) != group.all_reduce_plan(1 << 26)
        group.algorithm = "halving_doubling"
        assert (
            group.all_reduce_plan(4) == group.all_reduce_plan(1 << 26) == group.all_reduce_plan(9, "halving_doubling")
        )
        assert group.all_reduce_plan(4, "ring") != group.all_reduce_plan(4)
        assert group.bucket_bytes >= 1 << 18
        assert group.all_reduce(np.full(7, 2.0))[0] == 8
        group.algorithm = None
        assert group.all_reduce_plan(4) == group.all_reduce_plan(4, "recursive_doubling")

    local.run(4, body)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda g: g.all_reduce(np.ones(2), algorithm="rings"), "algorithm is expected to be one of ring, .*'rings'"),
        (lambda g: setattr(g, "algorithm", "rings"), "algorithm is expected to be one of ring, .*'rings'"),
        (lambda g: g.all_reduce_plan(4, "rings"), "algorithm is expected to be one of ring, .*'rings'"),
        (lambda g: g.all_reduce(np.ones(2), wire_dtype="float16"), "wire_dtype='float16' for float64"),
        (lambda g: g.all_reduce(np.ones(2, "f"), wire_dtype="int8"), "wire_dtype='int8' for float32"),
        (lambda g: g.prepare_all_reduce([1.0, 2.0]), "C-contiguous and writable. Received: list"),
        (lambda g: g.prepare_all_reduce(np.ones((4, 4))[:, ::2]), r"Received: float64\[4, 2\], strides="),
        (lambda g: g.prepare_all_reduce(np.frombuffer(b"abcd", np.float32)), "writable"),
        (lambda g: g.prepare_all_reduce(np.ones(2, np.uint8)), "dtype=uint8"),
        (lambda g: Group(0, 1, topology=Topology(((0, 1),))), "topology is expected to hold 1 ranks"),
    ],
)
def test_bad_arguments_get_one_line(call, text):
    with pytest.raises(ConfigurationError, match=text):
        call(Group(0, 1))


@pytest.mark.parametrize("divisor", [0.5, 1e-300, 1e10])
def test_an_integer_is_divided_by_what_is_one(divisor):
    def body(group):
        work = np.ones(4, np.int32)
        operation = library.Operation(
            plan=group.all_reduce_plan(16), dtype=library.DTYPES["int32"], reduce=library.REDUCTIONS["mean"], scale=1.0,
            divisor=divisor, channel=1, step=-1, description=b"mean", work=work.ctypes.data, elements=4,
        )  # fmt: skip
        with pytest.raises(ConfigurationError, match="refused an operation"):
            group.run_native(operation, work, 5)

    local.run(2, body)


def test_one_rank_alone_changes_nothing():
    values = np.array([1 + 2.0**-20], np.float32)
    assert Group(0, 1).all_reduce(values, wire_dtype="bfloat16")[0] == values[0]


def test_the_core_says_what_it_runs_on():
    assert library.core().tfdist_instruction_set() in (b"baseline", b"avx2", b"avx512")
    for rate in ("tfdist_measure_copy_seconds_per_byte", "tfdist_measure_reduce_seconds_per_byte"):
        assert 0 < getattr(library.core(), rate)() < 1e-6


@pytest.mark.parametrize("algorithm", ALL_REDUCE)
def test_sixty_four_ranks(algorithm):
    def body(group):
        result = group.all_reduce(np.arange(1000.0) + group.rank, algorithm=algorithm)
        np.testing.assert_array_equal(result, 64 * np.arange(1000.0) + 63 * 32)

    local.run(64, body)
