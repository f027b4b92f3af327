"""Laws every plan obeys, on the interpreter: one row an algorithm. All-reduces have more of them in test_all_reduce.py."""

import pytest

from tfdist.collectives import ALGORITHMS, Kind, PlanError, Step, interpret
from tfdist.collectives.plan import receive, send

WORLD_SIZES = [1, 2, 3, 4, 5, 8]


def plans(name, world_size, **options):
    return [list(ALGORITHMS[name].steps(rank, world_size, **options)) for rank in range(world_size)]


def value(rank, chunk):
    return 1000.0 * rank + chunk + 1


def run(name, world_size, **options):
    count = ALGORITHMS[name].num_chunks(world_size)
    chunks = [[value(rank, chunk) for chunk in range(count)] for rank in range(world_size)]
    return interpret(plans(name, world_size, **options), chunks, lambda own, received: own + received)


def expect_all_reduce(result, world_size):
    for row in result:
        assert row == [sum(value(r, c) for r in range(world_size)) for c in range(world_size)]


def expect_reduce_scatter(result, world_size):
    for rank, row in enumerate(result):
        assert row[rank] == sum(value(r, rank) for r in range(world_size))


def expect_all_gather(result, world_size):
    for row in result:
        assert row == [value(r, r) for r in range(world_size)]


def expect_broadcast(result, world_size):
    assert all(row[0] == value(0, 0) for row in result)


def expect_all_to_all(result, world_size):
    for rank, row in enumerate(result):
        assert row[world_size:] == [value(r, rank) for r in range(world_size)]


def expect_barrier(result, world_size):
    assert len(result) == world_size  # that the interpreter ends is the law


EXPECTATIONS = {
    "all_reduce": expect_all_reduce,
    "reduce_scatter": expect_reduce_scatter,
    "all_gather": expect_all_gather,
    "broadcast": expect_broadcast,
    "all_to_all": expect_all_to_all,
    "barrier": expect_barrier,
}


def test_every_algorithm_has_a_row():
    assert set(EXPECTATIONS) == set(ALGORITHMS)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_result(name, world_size):
    EXPECTATIONS[name](run(name, world_size), world_size)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_broadcast_from_every_root(world_size):
    for root in range(world_size):
        result = run("broadcast", world_size, root=root)
        assert all(row[0] == value(root, 0) for row in result)


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_rank_speaks_to_itself(name, world_size):
    for rank, steps in enumerate(plans(name, world_size)):
        assert all(step.peer != rank for step in steps)
        assert all(0 <= step.chunk < ALGORITHMS[name].num_chunks(world_size) for step in steps)


def test_barrier_is_left_only_after_everyone_entered():
    late = [list(ALGORITHMS["barrier"].steps(rank, 4)) for rank in range(4)]
    late[2] = []  # rank 2 never enters
    with pytest.raises(PlanError, match="every rank waits"):
        interpret(late, [[0, 0] for _ in range(4)], lambda a, b: a)


def test_a_deadlock_is_named():
    with pytest.raises(PlanError, match="every rank waits.*stuck"):
        interpret([[receive(0, 1)], [receive(0, 0)]], [[1], [2]], lambda a, b: a + b)


def test_an_unread_message_is_named():
    with pytest.raises(PlanError, match=r"never received.*\(0, 1\)"):
        interpret([[send(0, 1)], []], [[1], [2]], lambda a, b: a + b)


def test_step_defaults():
    assert Step(Kind.COPY, 1, source=0) == Step(Kind.COPY, 1, -1, 0)
