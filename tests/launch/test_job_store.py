import contextlib
import dataclasses

import pytest

from tfdist.launch import job_store
from tfdist.launch.job import Job
from tfdist.launch.job_store import JobStore

SECRET = b"of this test"


@pytest.fixture
def nodes():
    """The stores of three launchers, node 0 first."""
    job = Job(("x.py",), num_nodes=3, num_servers=1)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.closing(JobStore(job, SECRET, {"TFDIST_TIMEOUT": "7"})))
        others = [
            stack.enter_context(
                contextlib.closing(
                    JobStore(dataclasses.replace(job, node_rank=rank, address=first.address), SECRET, {})
                )
            )
            for rank in (1, 2)
        ]
        yield [first, *others]


def test_node_0_knows_when_all_others_have_ended(nodes):
    first, second, third = nodes
    assert not first.others_have_ended()
    second.tell_ended()
    second.tell_ended()
    assert not first.others_have_ended()
    third.tell_ended()
    assert first.others_have_ended()


def test_it_does_not_wait_for_ever(nodes, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(job_store.time, "monotonic", lambda: now[0])
    assert not nodes[0].others_have_ended()
    now[0] = 6.9
    assert not nodes[0].others_have_ended()
    now[0] = 7.1
    assert nodes[0].others_have_ended()


def test_a_node_that_ends_after_node_0_does_not_mind(nodes):
    nodes[0].close()
    nodes[1].tell_ended()
    assert nodes[1].reports() == {}


def test_signs_of_life_of_others_make_it_wait_longer_and_its_own_do_not(nodes, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(job_store.time, "monotonic", lambda: now[0])
    assert not nodes[0].others_have_ended()
    now[0] = 6.9
    nodes[1].set("launch/live/1", b"1 1")
    assert not nodes[0].others_have_ended()
    now[0] = 13.8
    nodes[0].set("launch/live/0", b"1 1")
    assert not nodes[0].others_have_ended()
    now[0] = 14.0
    assert nodes[0].others_have_ended()


def test_losses_and_members(nodes):
    first, second, _ = nodes
    second.tell_lost(3, 2)
    assert first.items("elastic/dead/") == {"3": b"2"}
    for store in (first, second):
        assert store.joined() == {} and not store.is_over()
    first.set("elastic/joined/3", b"3")
    first.set("elastic/excluded/2", b"1")
    first.set("elastic/joined/x", b"3")
    first.set("elastic/joined/4", b"x")
    second.set("elastic/over", b"")
    first.set("parameter_server/10", b"a:2")
    for store in (first, second):
        assert store.joined() == {3: 3} and store.excluded() == {2: 1} and store.is_over()
        assert store.server_address(1) is None and store.server_address(10) == b"a:2"
