"""That faults happen, when they are to, and only then."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tfdist.errors import ConfigurationError
from tfdist.testing import FaultInjector, faults


@pytest.fixture
def schedule():
    """Loads faults as a worker of a job would find them; what becomes of them is written down instead of done."""
    happened = []

    def load(injector, rank=0, incarnation=0, **more):
        variables = {"TFDIST_RANK": str(rank), "TFDIST_INCARNATION": str(incarnation), **more}
        faults.load({**injector.environment(), **variables})
        faults.on_drop(happened.append)
        return happened

    yield load
    faults.load({})
    faults.on_drop(None)


def _drops(*steps):
    injector = FaultInjector()
    for step in steps:
        injector.drop(rank=0, peer=100 if step is None else 100 + step, step=step)
    return injector


def test_it_happens_once_at_the_first_step_that_is_not_before_it(schedule):
    happened = schedule(_drops(3, 4))
    seen = []
    for step in (0, 2, 6, 8):
        faults.reach("step", step)
        seen.append(len(happened))
    assert seen == [0, 0, 2, 2] and happened == [103, 104]


def test_a_phase_without_steps_counts_its_visits(schedule):
    schedule(FaultInjector().kill(rank=0, phase="saving", step=1).kill(rank=0, phase="end"))
    assert [len(faults.take("saving")) for _ in range(4)] == [0, 1, 0, 0]
    assert [fault.phase for fault in faults.take("end")] == ["end"] and faults.take("end") == []


@pytest.mark.parametrize("phase, expected", [("begin", []), ("step", [1])])
def test_only_its_phase_counts(schedule, phase, expected):
    happened = schedule(FaultInjector().drop(rank=0, peer=1))
    faults.reach(phase, 0)
    assert happened == expected


@pytest.mark.parametrize(
    "place, expected",
    [({}, [1]), ({"incarnation": 1}, [2]), ({"incarnation": 2}, []), ({"rank": 1}, []), ({"TFDIST_SERVER": "0"}, [])],
)
def test_only_its_worker_and_incarnation_count(schedule, place, expected):
    happened = schedule(FaultInjector().drop(rank=0, peer=1).drop(rank=0, peer=2, incarnation=1), **place)
    faults.reach("step", 0)
    assert happened == expected


def test_nothing_is_kept_where_nothing_is_scheduled(schedule):
    schedule(FaultInjector())
    assert faults._schedule is None and faults.take("step", 0) == []
    faults.reach("step", 0)


def test_a_drop_without_connections_is_told(schedule, monkeypatch):
    said = []
    monkeypatch.setattr(faults.logging, "warning", lambda text, *values: said.append(text % values))
    schedule(FaultInjector().drop(rank=0, peer=3))
    faults.on_drop(None)
    faults.reach("step", 0)
    assert said[1:] == ["tfdist.testing: there is no connection to rank 3 that could be dropped"]


def test_apply_is_for_this_process_too(schedule, monkeypatch):
    monkeypatch.setenv("TFDIST_FAULTS", "")
    monkeypatch.setenv("TFDIST_RANK", "0")
    happened = schedule(FaultInjector())
    FaultInjector().drop(rank=0, peer=9).apply()
    faults.reach("step", 0)
    assert happened == [9]


def test_without_a_rank_in_the_variables_the_cluster_knows_it(schedule):
    happened = schedule(FaultInjector().drop(rank=0, peer=9), TFDIST_RANK="")
    faults.reach("step", 0)
    assert happened == [9]


def _run(code, injector, **variables):
    environ = {**os.environ, "TFDIST_RANK": "0", **injector.environment(), **variables,
               "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True)  # fmt: skip


LOOP = """
import time
from tfdist.testing import faults
for step in range(3):
    print(step, time.monotonic(), flush=True)
    faults.reach("step", step)
print("end", time.monotonic(), flush=True)
"""


def test_a_kill_kills():
    process = _run(LOOP, FaultInjector().kill(rank=0, step=1))
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert [line.split()[0] for line in stdout.splitlines()] == ["0", "1"]
    assert "tfdist.testing: kill:rank=0,step=1" in stderr


def test_a_stop_stops_all_of_it_and_ends():
    process = _run(LOOP, FaultInjector().stop(rank=0, step=1, seconds=0.4))
    assert process.stdout.readline() and process.stdout.readline()
    states = set()
    while process.poll() is None and "T" not in states:
        with open(f"/proc/{process.pid}/stat") as file:
            states.add(file.read().rpartition(")")[2].split()[0])
        time.sleep(0.01)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0 and "T" in states, stderr
    assert [line.split()[0] for line in stdout.splitlines()] == ["2", "end"]


def test_what_ends_a_stop_ends_with_the_process():
    process = _run(LOOP, FaultInjector().stop(rank=0, step=1, seconds=60))
    assert process.stdout.readline() and process.stdout.readline()
    deadline = time.monotonic() + 20
    while "\tT" not in (status := open(f"/proc/{process.pid}/status").read()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "\tT" in status
    children = open(f"/proc/{process.pid}/task/{process.pid}/children").read().split()
    process.kill()
    process.communicate(timeout=30)  # the helper has the other end of no pipe of ours
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{child}") for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(children) == 1 and not os.path.exists(f"/proc/{children[0]}")


def test_a_bad_variable_is_refused_at_the_import():
    process = _run(LOOP, FaultInjector(), TFDIST_FAULTS="x")
    _, stderr = process.communicate(timeout=30)
    assert process.returncode and "TFDIST_FAULTS is expected to be" in stderr
    with pytest.raises(ConfigurationError, match="TFDIST_FAULTS is expected to be"):
        faults.load({"TFDIST_FAULTS": "x"})
