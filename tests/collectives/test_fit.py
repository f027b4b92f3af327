import math
import random

import pytest

from tests.collectives.all_reduce_cases import one_host
from tfdist.collectives import ALL_REDUCE, Topology
from tfdist.collectives.choose import predict
from tfdist.collectives.fit import Probe, fit
from tfdist.collectives.rates import LevelRates, Rates, default_rates, to_list

TRUTH = Rates(LevelRates(4e-6, 0.5e-6, 1 / 8e9), LevelRates(200e-6, 5e-6, 1 / 0.12e9), 1 / 10e9, 30e-6)
PLANS = [(name, size) for name in ("recursive_doubling", "ring") for size in (4 << 10, 256 << 10, 4 << 20)]
TWO_HOSTS = Topology((range(3), range(3, 6)))


def probes(topology, rates, noise=0.0, seed=0):
    draw = random.Random(seed)
    return [
        Probe(name, size, predict(name, topology, rates, size) * draw.uniform(1 - noise, 1 + noise))
        for name, size in PLANS
    ]


def worst(topology, found, truth):
    """The largest factor between two predictions of any algorithm, over four decades of size."""
    pairs = [
        (predict(name, topology, found, 10**power), predict(name, topology, truth, 10**power))
        for name in ALL_REDUCE
        for power in (4, 5, 6, 7)
    ]
    return max(max(a / b, b / a) for a, b in pairs)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("topology", [one_host(2), one_host(4), one_host(6)], ids=lambda t: t.world_size)
def test_rates_are_found_under_noise_of_a_tenth(topology, seed):
    found = fit(topology, probes(topology, TRUTH, 0.1, seed), TRUTH.reduce_seconds_per_byte)
    assert found.inside.seconds_per_byte == pytest.approx(TRUTH.inside.seconds_per_byte, rel=0.2)
    assert found.reduce_seconds_per_byte == pytest.approx(TRUTH.reduce_seconds_per_byte)
    assert found.between == default_rates(topology).between
    assert worst(topology, found, TRUTH) < 1.4


def test_rates_between_hosts_are_found_too():
    found = fit(TWO_HOSTS, probes(TWO_HOSTS, TRUTH, 0.1), TRUTH.reduce_seconds_per_byte)
    assert found.between.seconds_per_byte == pytest.approx(TRUTH.between.seconds_per_byte, rel=0.2)
    assert worst(TWO_HOSTS, found, TRUTH) < 1.4


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_machines_far_from_the_defaults_are_found(factor):
    inside = LevelRates(*(rate * factor for rate in to_list(TRUTH)[:3]))
    truth = Rates(inside, TRUTH.between, TRUTH.reduce_seconds_per_byte * factor, TRUTH.start_seconds * factor)
    found = fit(one_host(4), probes(one_host(4), truth), truth.reduce_seconds_per_byte)
    assert worst(one_host(4), found, truth) < 1.2


@pytest.mark.parametrize("times", [[0.0] * 6, [-1.0] * 6, [math.nan] * 6, [1e-9] * 6, [1e6] * 6, [1e-6, 1e3] * 3])
def test_rates_stay_above_zero_whatever_was_measured(times):
    found = fit(TWO_HOSTS, [(*plan, seconds) for plan, seconds in zip(PLANS, times)], 0.0)
    assert all(math.isfinite(rate) and rate > 0 for rate in to_list(found))


def test_without_probes_the_defaults_remain():
    default = default_rates(TWO_HOSTS)
    assert to_list(fit(TWO_HOSTS, [], math.nan)) == pytest.approx(to_list(default))
