"""Laws of striped plans: the same algorithm on every lane, and a socket of its own for each."""

import pytest

from tests.collectives.all_reduce_cases import HOSTS, Trees, all_reduce_plans, one_host
from tfdist.collectives import ALGORITHMS, ALL_REDUCE, Kind, Topology, interpret
from tfdist.collectives.striping import striped

TOPOLOGIES = [*map(one_host, [1, 2, 3, 4, 5, 8]), *map(Topology, HOSTS[:9])]
in_every_case = pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: f"{t.world_size}in{len(t.hosts)}")
for_every_algorithm = pytest.mark.parametrize("name", ALL_REDUCE)
on_lanes = pytest.mark.parametrize("lanes", [1, 2, 3])


def run(steps, num_chunks):
    trees = Trees()
    chunks = [[trees.leaf(rank, chunk) for chunk in range(num_chunks)] for rank in range(len(steps))]
    return trees, interpret(steps, chunks, trees.add, trees.divide, trees.round)


def shape(trees, tree, lanes):
    """Returns a tree with the chunks that its lanes were cut from."""
    kind, *parts = trees.rows[tree]
    if kind == "leaf":
        return kind, parts[0], parts[1] // lanes
    return kind, *sorted(shape(trees, part, lanes) for part in parts)


@on_lanes
@in_every_case
@for_every_algorithm
def test_every_lane_ends_as_the_whole_would(name, topology, lanes):
    steps, num_chunks = all_reduce_plans(name, topology)
    trees, expected = run(steps, num_chunks)
    lane_trees, result = run([list(striped(own, lanes)) for own in steps], num_chunks * lanes)
    for row, whole in zip(result, expected):
        for chunk, tree in enumerate(row):
            assert shape(lane_trees, tree, lanes) == shape(trees, whole[chunk // lanes], 1)


@on_lanes
@in_every_case
@for_every_algorithm
def test_message_number_modulo_lanes_is_the_lane(name, topology, lanes):
    for own in all_reduce_plans(name, topology)[0]:
        counts = {}
        for step in striped(own, lanes):
            pair = (step.peer, step.kind == Kind.SEND)
            number = counts[pair] = counts.get(pair, -1) + 1
            assert number % lanes == step.chunk % lanes


@on_lanes
def test_lanes_of_a_multicast_are_multicasts(lanes):
    own = all_reduce_plans("direct", one_host(4))[0][1]
    sends = [step for step in own if step.kind == Kind.SEND and step.chunk == 1]
    lane_steps = list(striped(own, lanes))
    for lane in range(lanes):
        first = next(i for i, step in enumerate(lane_steps) if step.kind == Kind.SEND and step.chunk == lanes + lane)
        assert [step.peer for step in lane_steps[first : first + 3]] == [step.peer for step in sends]


def test_copies_stay_within_their_lane():
    plans = [list(striped(ALGORITHMS["all_to_all"].steps(rank, 3), 2)) for rank in range(3)]
    chunks = [[(rank, chunk) for chunk in range(12)] for rank in range(3)]
    result = interpret(plans, chunks, reduce=None)
    for rank, row in enumerate(result):
        assert row[6:] == [(sender, 2 * rank + lane) for sender in range(3) for lane in range(2)]
