import dataclasses
import json

import pytest

from tests.collectives.all_reduce_cases import one_host
from tfdist.collectives import Topology
from tfdist.collectives.cost import Cost, Traffic
from tfdist.collectives.rates import LevelRates, Rates, default_rates, fixed_seconds, from_list, seconds, to_list
from tfdist.errors import ConfigurationError

RATES = Rates(LevelRates(1.0, 10.0, 100.0), LevelRates(1e3, 1e4, 1e5), 1e6, 1e7)


def test_seconds_are_counts_times_rates():
    cost = Cost(Traffic(1, 2, 3.0, 4.0, 5.0), Traffic(1, 2, 3.0, 4.0, 5.0))
    assert fixed_seconds(cost, RATES) == 1 * 1 + 2 * 10 + 1 * 1e3 + 2 * 1e4 + 1e7
    assert seconds(cost, RATES) == fixed_seconds(cost, RATES) + (3 + 4) * 100 + max(3, 4) * 1e5 + (5 + 5) * 1e6


def test_rates_survive_json_and_lists():
    assert Rates.from_dict(json.loads(json.dumps(RATES.to_dict()))) == RATES
    assert from_list(to_list(RATES)) == RATES and len(set(to_list(RATES))) == 8


def wrong_rates():
    right = RATES.to_dict()
    yield {key: value for key, value in right.items() if key != "between"}
    yield {**right, "inside": {"latency_seconds": 1.0}}
    yield {**right, "start_seconds": 0.0}
    yield {**right, "start_seconds": float("nan")}
    yield {**right, "start_seconds": "fast"}
    yield {**right, "speed": 1.0}
    yield "fast"


@pytest.mark.parametrize("values", list(wrong_rates()))
def test_other_rates_are_refused(values):
    with pytest.raises(ConfigurationError, match="all numbers > 0. Received: rates=.*measure anew"):
        Rates.from_dict(values)


def test_defaults_know_whether_memory_is_shared():
    shared, sockets = default_rates(one_host(2)), default_rates(Topology(((0, 1),), shared=False))
    assert shared.inside.latency_seconds < sockets.inside.latency_seconds < sockets.between.latency_seconds
    assert dataclasses.replace(shared, inside=sockets.inside) == sockets
