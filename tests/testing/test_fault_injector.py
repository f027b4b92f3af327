"""How faults are scheduled: in Python, in the variable and on the command line."""

import json

import pytest

from tfdist.errors import ConfigurationError
from tfdist.testing import PHASES, FaultInjector
from tfdist.testing.fault import Fault, from_environment

FAULTS = [
    Fault("kill", 1, 3),
    Fault("kill", 2, phase="saving", incarnation=1),
    Fault("stop", 2, 5, seconds=3.0),
    Fault("drop", 0, 7, peer=1),
]
TEXT = " kill:rank=1,step=3; kill:rank=2,phase=saving,incarnation=1;stop: rank=2, step=5,seconds=3 ;drop:rank=0,peer=1,step=7;"


def _injector():
    return (
        FaultInjector()
        .kill(rank=1, step=3)
        .kill(rank=2, phase="saving", incarnation=1)
        .stop(rank=2, step=5, seconds=3)
        .drop(rank=0, peer=1, step=7)
    )


def test_the_three_ways_to_write_it_are_one():
    assert _injector().faults == FAULTS == FaultInjector.parse(TEXT).faults
    assert from_environment(_injector().environment()) == FAULTS
    assert FaultInjector.parse(";".join(map(str, FAULTS))).faults == FAULTS
    assert from_environment({}) == from_environment({"TFDIST_FAULTS": ""}) == []


def test_apply_sets_the_variable():
    environ = {}
    _injector().apply(environ)
    assert list(environ) == ["TFDIST_FAULTS"] and len(json.loads(environ["TFDIST_FAULTS"])) == 4


BAD = {
    "explode:rank=1": "a fault is expected to be kill or stop or drop. Received: kind='explode'",
    "kill": "Received: field=''",
    "kill:step=1": "kill is expected to be with rank. Received: fault='kill:step=1'",
    "kill:rank=1,seconds=2": "kill is expected to be with rank, step, phase, incarnation. Received: field='seconds'",
    "kill:rank=-1": "rank of kill is expected to be an integer >= 0. Received: rank=-1",
    "kill:rank=one": "Received: rank='one'",
    "kill:rank=1,step=1.5": "step of kill is expected to be an integer >= 0. Received: step='1.5'",
    "kill:rank=1,phase=lunch": f"phase of kill is expected to be one of {', '.join(PHASES)}. Received: phase='lunch'",
    "stop:rank=1,seconds=0": "seconds of stop is expected to be a number > 0. Received: seconds=0.0",
    "stop:rank=1": "stop is expected to be with rank and seconds",
    "drop:rank=1,peer=1": "peer of drop is expected to be another rank. Received: peer=1",
}


@pytest.mark.parametrize("text", BAD)
def test_a_fault_that_is_none_is_refused(text):
    with pytest.raises(ConfigurationError) as caught:
        FaultInjector.parse(text)
    assert BAD[text] in str(caught.value)


def test_mistakes_in_python_are_refused_too():
    with pytest.raises(ConfigurationError, match="phase of kill is expected to be one of"):
        FaultInjector().kill(rank=0, phase="lunch")
    with pytest.raises(ConfigurationError, match="rank of kill is expected to be an integer >= 0. Received: rank=True"):
        FaultInjector().kill(rank=True)


@pytest.mark.parametrize("text", ["x", "{}", "[1]", '[{"kind": "kill"}]', '[{"kind": "kill", "rank": 0, "more": 1}]'])
def test_a_variable_of_something_else_is_refused(text):
    with pytest.raises(ConfigurationError, match="TFDIST_FAULTS is expected to be what FaultInjector"):
        from_environment({"TFDIST_FAULTS": text})
