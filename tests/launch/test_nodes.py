"""What launchers of several hosts make of what they hear, with a store that is a dict."""

import pytest

from tfdist.launch import nodes
from tfdist.launch.job import Job
from tfdist.launch.nodes import Nodes


class _Store:
    def __init__(self):
        self.values, self.answers = {}, True

    def set(self, key, value, seconds=0.0):
        if self.answers:
            self.values[key] = value

    def items(self, prefix):
        found = self.values if self.answers else {}
        return {key[len(prefix) :]: value for key, value in found.items() if key.startswith(prefix)}

    def others_have_ended(self):
        return "launch/ended/1" in self.values


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(nodes.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def _nodes(store, rank=1):
    return Nodes(Job(("x.py",), num_workers=2, num_nodes=3, node_rank=rank), store)


def test_workers_elsewhere_are_those_told_and_else_as_many_as_here(clock):
    store = _Store()
    second, third = _nodes(store, 1), _nodes(store, 2)
    assert second.live_elsewhere() == 4
    assert third.exchange(1) == second.exchange(2) == ""
    assert second.live_elsewhere() == 3 and third.live_elsewhere() == 4


def test_it_is_told_at_every_change_and_once_in_a_second(clock):
    store = _Store()
    second = _nodes(store)
    told = []
    for live, now in ((2, 0.0), (2, 0.5), (1, 0.6), (1, 1.5), (1, 1.7)):
        clock[0] = now
        second.exchange(live)
        told.append(store.values["launch/live/1"].decode())
    assert told == ["2 1", "2 1", "1 2", "1 2", "1 3"]


def test_the_failure_of_a_node_ends_the_others(clock):
    store = _Store()
    _nodes(store, 2).tell_failed()
    assert _nodes(store).exchange(2) == "node 2 has failed, see its output: the job ends."


def test_node_0_may_start_late_but_not_be_silent_for_long(clock):
    store = _Store()
    store.answers = False
    second = _nodes(store)
    assert second.exchange(2) == ""
    clock[0] = 1000.0
    assert second.exchange(2) == ""
    store.answers = True
    clock[0] = 1001.0
    assert second.exchange(2) == ""
    store.answers = False
    clock[0] = 1031.0
    assert second.exchange(2) == ""
    clock[0] = 1033.0
    assert second.exchange(2) == "node 0 has not answered for 30 s: the job ends."


@pytest.mark.parametrize("rank, has_ended, seconds", [(0, False, 3.0), (0, True, 0.0), (1, False, 0.0)])
def test_node_0_waits_a_moment_for_those_it_has_told_of_its_failure(clock, rank, has_ended, seconds):
    store = _Store()
    if has_ended:
        store.values["launch/ended/1"] = b""
    _nodes(store, rank).await_others()
    assert clock[0] == pytest.approx(seconds, abs=0.06)


def test_on_one_host_nothing_is_told(clock):
    store = _Store()
    alone = Nodes(Job(("x.py",), num_workers=2), store)
    assert alone.exchange(2) == "" and alone.live_elsewhere() == 0
    alone.tell_failed()
    alone.await_others()
    assert store.values == {} and clock[0] == 0.0
