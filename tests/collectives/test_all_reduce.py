"""Laws of every all-reduce, for every P and every way to spread the ranks over hosts."""

import pytest

from tests.collectives.all_reduce_cases import HOSTS, TOPOLOGIES, Trees, all_reduce_plans, one_host
from tfdist.collectives import ALL_REDUCE, Kind, Topology, interpret

in_every_case = pytest.mark.parametrize("topology", TOPOLOGIES, ids=lambda t: f"{t.world_size}in{len(t.hosts)}")
for_every_algorithm = pytest.mark.parametrize("name", ALL_REDUCE)


def run(name, topology, *, mean=False, rounded=False):
    """Returns (the trees, the chunks of all ranks at the end)."""
    trees = Trees()
    steps, num_chunks = all_reduce_plans(name, topology)
    chunks = [[trees.leaf(rank, chunk) for chunk in range(num_chunks)] for rank in range(topology.world_size)]
    finish, wire = trees.divide if mean else None, trees.round if rounded else None
    return trees, interpret(steps, chunks, trees.add, finish, wire)


@in_every_case
@for_every_algorithm
def test_every_rank_is_added_once_and_all_end_with_the_same_bits(name, topology):
    trees, result = run(name, topology)
    assert all(row == result[0] for row in result)
    for chunk, tree in enumerate(result[0]):
        assert trees.leaves(tree) == [(rank, chunk) for rank in range(topology.world_size)]


@in_every_case
@for_every_algorithm
def test_a_mean_is_divided_once_and_last(name, topology):
    trees, result = run(name, topology, mean=True)
    assert all(row == result[0] for row in result)
    if topology.world_size > 1:
        assert all(trees.rows[tree][0] == "mean" and trees.means(tree) == 1 for tree in result[0])


@in_every_case
@for_every_algorithm
def test_all_end_with_the_same_bits_where_the_wire_rounds(name, topology):
    _, result = run(name, topology, mean=True, rounded=True)
    assert all(row == result[0] for row in result)


@in_every_case
@for_every_algorithm
def test_steps_stay_within_the_ranks_and_chunks(name, topology):
    steps, num_chunks = all_reduce_plans(name, topology)
    for rank, own in enumerate(steps):
        assert all(0 <= step.peer < topology.world_size and step.peer != rank for step in own)
        assert all(0 <= step.chunk < num_chunks and step.kind != Kind.COPY for step in own)


@for_every_algorithm
def test_alone_there_is_nothing_to_do(name):
    assert all_reduce_plans(name, one_host(1))[0] == [[]]


@pytest.mark.parametrize("world_size", [3, 8])
def test_direct_hands_out_a_result_in_one_multicast(world_size):
    for rank, steps in enumerate(all_reduce_plans("direct", one_host(world_size))[0]):
        results = [step for step in steps if step.kind == Kind.SEND and step.chunk == rank]
        first = steps.index(results[0])
        assert steps[first : first + world_size - 1] == results


@pytest.mark.parametrize("hosts", HOSTS)
def test_hierarchical_crosses_between_hosts_only_in_its_rings(hosts):
    topology = Topology(hosts)
    steps, num_chunks = all_reduce_plans("hierarchical", topology)
    for here, host in enumerate(hosts):
        crossing = [s for r in host for s in steps[r] if s.kind == Kind.SEND and topology.host_of[s.peer] != here]
        assert len(crossing) == num_chunks * 2 * (len(hosts) - 1) / len(hosts)


def test_one_host_makes_hierarchical_direct():
    assert all_reduce_plans("hierarchical", one_host(5)) == all_reduce_plans("direct", one_host(5))
