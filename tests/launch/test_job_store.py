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
