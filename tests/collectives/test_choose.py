import dataclasses
import json
import subprocess
import sys

import pytest

from tests.collectives.all_reduce_cases import TOPOLOGIES, one_host
from tfdist.collectives import ALL_REDUCE, Topology
from tfdist.collectives.choose import bucket_bytes, check, choose, crossovers, predict
from tfdist.collectives.rates import LevelRates, Rates, default_rates, seconds
from tfdist.errors import ConfigurationError

SIZES = [0, 1, 100, 4096, 30_000, 1 << 18, 1 << 22, 1 << 27]
TWO_HOSTS = Topology((range(4), range(4, 8)))
WIDE_AREA = LevelRates(20e-3, 3e-6, 1 / 12.5e6)


def by_ids(topology):
    return f"{topology.world_size}in{len(topology.hosts)}"


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=by_ids)
def test_a_prediction_is_the_seconds_of_the_cost(topology):
    rates = default_rates(topology)
    for name, algorithm in ALL_REDUCE.items():
        for num_bytes in SIZES:
            expected = seconds(algorithm.cost(topology, num_bytes), rates)
            assert predict(name, topology, rates, num_bytes) == pytest.approx(expected)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=by_ids)
def test_the_choice_is_the_fastest_within_a_twentieth(topology):
    rates = default_rates(topology)
    for num_bytes in SIZES:
        fastest = min(predict(name, topology, rates, num_bytes) for name in ALL_REDUCE)
        assert predict(choose(topology, rates, num_bytes), topology, rates, num_bytes) <= 1.05 * fastest


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
def test_small_arrays_take_the_fewest_latencies(world_size):
    topology = one_host(world_size)
    assert choose(topology, default_rates(topology), 64) == "recursive_doubling"


@pytest.mark.parametrize(
    "topology, expected",
    [
        (one_host(2), "ring"),  # direct does the same there
        (one_host(4), "direct"),
        (one_host(7), "direct"),
        (Topology([[rank] for rank in range(4)]), "ring"),
        (TWO_HOSTS, "hierarchical"),
        (Topology(((0, 2, 4, 6), (1, 3, 5, 7))), "hierarchical"),
        (Topology(((0, 1, 2), (3,))), "hierarchical"),
        (dataclasses.replace(TWO_HOSTS, shared=False), "hierarchical"),
    ],
)
def test_large_arrays_move_the_fewest_bytes(topology, expected):
    assert choose(topology, default_rates(topology), 1 << 27) == expected


def test_what_is_not_chosen_by_default_is_chosen_where_it_is_best():
    topology = Topology([[rank] for rank in range(16)])
    far = dataclasses.replace(default_rates(topology), between=WIDE_AREA)
    assert choose(topology, far, 1 << 20) == "direct"  # two latencies
    busy = dataclasses.replace(far, between=LevelRates(1e-6, 1e-6, 1e-9))
    assert choose(topology, busy, 1 << 12) == "recursive_doubling"  # few messages
    hosts = Topology([range(4 * host, 4 * host + 4) for host in range(4)])
    assert choose(hosts, default_rates(hosts), 1 << 18) == "halving_doubling"  # few latencies between hosts


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=by_ids)
def test_crossovers_are_where_the_choice_changes(topology):
    rates = default_rates(topology)
    changes = crossovers(topology, rates, largest_bytes=1 << 27)
    assert changes[0] == (0, choose(topology, rates, 0))
    for (_, before), (size, after) in zip(changes, changes[1:]):
        assert before != after
        assert choose(topology, rates, size - 1) == before and choose(topology, rates, size) == after
    for num_bytes in SIZES:
        assert choose(topology, rates, num_bytes) == [name for size, name in changes if size <= num_bytes][-1]


def test_another_process_with_equal_rates_chooses_the_same():
    rates = default_rates(TWO_HOSTS)
    code = (
        "import sys, json; from tfdist.collectives import Topology, choose; from tfdist.collectives.rates import Rates\n"
        "hosts, rates = json.loads(sys.argv[1]), Rates.from_dict(json.loads(sys.argv[2]))\n"
        "print(json.dumps(choose.crossovers(Topology(hosts), rates)))"
    )
    arguments = [json.dumps([list(host) for host in TWO_HOSTS.hosts]), json.dumps(rates.to_dict())]
    output = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert [tuple(row) for row in json.loads(output.stdout)] == crossovers(TWO_HOSTS, rates), output.stderr


def test_a_given_name_is_taken_whatever_the_size():
    rates = default_rates(TWO_HOSTS)
    for name in ALL_REDUCE:
        assert {choose(TWO_HOSTS, rates, num_bytes, name) for num_bytes in SIZES} == {name}


@pytest.mark.parametrize("call", [check, lambda name: choose(TWO_HOSTS, default_rates(TWO_HOSTS), 1, name)])
def test_an_unknown_name_is_refused(call):
    match = "algorithm is expected to be one of ring, direct, .*Received: algorithm='rings'. Pass one of these"
    with pytest.raises(ConfigurationError, match=match):
        call("rings")


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=by_ids)
@pytest.mark.parametrize("slower", [1e-3, 1, 10])
def test_a_bucket_spends_at_most_a_tenth_on_latencies(topology, slower):
    rates = default_rates(topology)
    inside, between = (
        dataclasses.replace(level, latency_seconds=level.latency_seconds * slower)
        for level in (rates.inside, rates.between)
    )
    rates = Rates(inside, between, rates.reduce_seconds_per_byte, rates.start_seconds * slower)
    size = bucket_bytes(topology, rates)
    assert size & (size - 1) == 0 and 1 << 18 <= size <= 1 << 24
    if size < 1 << 24:
        assert fixed_fraction(topology, rates, size) <= 0.1
    if size > 1 << 18:
        assert fixed_fraction(topology, rates, size // 2) > 0.1


def fixed_fraction(topology, rates, num_bytes):
    name = choose(topology, rates, num_bytes)
    return predict(name, topology, rates, 0) / predict(name, topology, rates, num_bytes)


def test_a_bucket_for_a_given_algorithm():
    rates = dataclasses.replace(default_rates(TWO_HOSTS), between=WIDE_AREA)
    assert bucket_bytes(TWO_HOSTS, rates, "ring") > bucket_bytes(TWO_HOSTS, rates, "recursive_doubling")
