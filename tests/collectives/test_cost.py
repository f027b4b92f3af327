"""Cost formulas against what the plans do, step by step, and against the closed forms of the papers."""

import dataclasses
from collections import defaultdict, deque

import pytest

from tests.collectives.all_reduce_cases import HOSTS, TOPOLOGIES, all_reduce_plans, one_host
from tfdist.collectives import ALL_REDUCE, Kind, Topology

NUM_BYTES = 1000.0
TABLES = [*TOPOLOGIES, *(Topology(hosts, shared=False) for hosts in [*HOSTS, [range(3)], [range(7)], [range(8)]])]

# One host of P = 2^k ranks with shared memory: latencies, messages, bytes sent, received and reduced per rank, in units of S.
FORMULAS = {
    "ring": lambda p, k: (2 * (p - 1), 4 * (p - 1), 2 * (p - 1) / p, 2 * (p - 1) / p, (p - 1) / p),
    "direct": lambda p, k: (2, 3 * (p - 1) + 1, 1, 2 * (p - 1) / p, (p - 1) / p),
    "hierarchical": lambda p, k: (2, 3 * (p - 1) + 1, 1, 2 * (p - 1) / p, (p - 1) / p),
    "halving_doubling": lambda p, k: (2 * k, 4 * (p - 1), 2 * (p - 1) / p, 2 * (p - 1) / p, (p - 1) / p),
    "recursive_doubling": lambda p, k: (k, 2 * k, k, k, k),
}


def test_every_algorithm_has_a_row():
    assert set(FORMULAS) == set(ALL_REDUCE)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
@pytest.mark.parametrize("name", ALL_REDUCE)
def test_cost_is_the_papers(name, k):
    latencies, messages, *in_arrays = FORMULAS[name](2**k, k)
    inside = ALL_REDUCE[name].cost(one_host(2**k), NUM_BYTES).inside
    expected = (latencies, messages, *(NUM_BYTES * times for times in in_arrays))
    assert dataclasses.astuple(inside) == pytest.approx(expected)


@pytest.mark.parametrize("topology", TABLES, ids=lambda t: f"{t.world_size}in{len(t.hosts)}-{t.shared}")
@pytest.mark.parametrize("name", ALL_REDUCE)
def test_cost_is_what_the_plan_does(name, topology):
    cost = ALL_REDUCE[name].cost(topology, NUM_BYTES)
    steps, num_chunks = all_reduce_plans(name, topology)
    counted = count(steps, topology, NUM_BYTES / num_chunks)
    assert dataclasses.astuple(cost.inside) == pytest.approx(counted["inside"])
    assert dataclasses.astuple(cost.between) == pytest.approx(counted["between"])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hierarchical_loads_a_hosts_link_with_what_must_cross(hosts):
    topology = Topology([range(8 * host, 8 * host + 8) for host in range(hosts)])
    between = ALL_REDUCE["hierarchical"].cost(topology, NUM_BYTES).between
    assert between.bytes_sent == pytest.approx(2 * NUM_BYTES * (hosts - 1) / hosts)
    assert between.latencies == 2 * (hosts - 1)


def count(plans, topology, chunk_bytes):
    """Counts what the plans do; {"inside" and "between": (latencies, messages, sent, received, reduced)}."""
    counts, between = defaultdict(float), []
    for rank, steps in enumerate(plans):
        for place, step in enumerate(steps):
            crosses = topology.host_of[rank] != topology.host_of[step.peer]
            if step.kind == Kind.SEND:
                if not crosses and topology.shared and _in_multicast(steps, place, rank, topology):
                    continue
                counts["sent", crosses, rank] += 1
            else:
                counts["received", crosses, rank] += 1
                counts["reduced", crosses, rank] += step.kind != Kind.RECEIVE
            counts["messages", crosses, rank] += 1
    between, inside = longest_chain(plans, topology)
    ranks = [(rank,) for rank in range(topology.world_size)]

    def busiest(what, crosses, links):
        return max(sum(counts[what, crosses, rank] for rank in link) for link in links)

    def level(crosses, latencies, links):
        sizes = [
            busiest("sent", crosses, links),
            busiest("received", crosses, links),
            busiest("reduced", crosses, ranks),
        ]
        return (latencies, busiest("messages", crosses, ranks), *(size * chunk_bytes for size in sizes))

    return {"inside": level(False, inside, ranks), "between": level(True, between, topology.hosts)}


def _in_multicast(steps, place, rank, topology):
    """Says whether a peer of this host gets the same chunk by an earlier send of the same multicast."""
    for earlier in map(steps.__getitem__, range(place - 1, -1, -1)):
        if earlier.kind != Kind.SEND or earlier.chunk != steps[place].chunk:
            return False
        if topology.host_of[earlier.peer] == topology.host_of[rank]:
            return True
    return False


def longest_chain(plans, topology):
    """Returns (between, inside): messages on the longest chain; a step waits for earlier ones on its chunk only."""
    position, messages = [0] * len(plans), defaultdict(deque)
    ready = defaultdict(lambda: (0, 0))  # by rank and chunk
    moved = True
    while moved:
        moved = False
        for rank, steps in enumerate(plans):
            while position[rank] < len(steps):
                step = steps[position[rank]]
                if step.kind == Kind.SEND:
                    messages[rank, step.peer].append(ready[rank, step.chunk])
                elif messages[step.peer, rank]:
                    between, inside = messages[step.peer, rank].popleft()
                    crosses = topology.host_of[rank] != topology.host_of[step.peer]
                    arrived = (between + crosses, inside + (not crosses))
                    ready[rank, step.chunk] = max(ready[rank, step.chunk], arrived)
                else:
                    break
                position[rank] += 1
                moved = True
    return max(ready.values(), default=(0, 0))
