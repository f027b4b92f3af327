"""A worker that is stopped closes no connection: who is told that it is lost, and who is only waited for."""

import signal
import time

import numpy as np
import pytest

from tests.multiprocess import run_workers
from tfdist.comm import local

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")


def run(num_workers, transport, heartbeat="2", case="reduce_with_one_stopped", **arguments):
    environment = {"TFDIST_TRANSPORT": transport, "TFDIST_HEARTBEAT_SECONDS": heartbeat, "TFDIST_PLAN": "default"}
    return run_workers(
        num_workers, f"tests.comm.heartbeat_cases:{case}", environment=environment, timeout=60, **arguments
    )


def test_a_stopped_worker_is_lost(transport):
    results = run(3, transport, heartbeat="0.5", stopped=1, seconds=2.5)
    for rank in (0, 2):
        assert results[rank]["lost"] == 1
        assert "lost rank 1 at " in results[rank]["text"] and "silent for 0." in results[rank]["text"]
        assert "waited in the step" in results[rank]["text"]
        assert results[rank]["seconds"] < 2.5  # it was still stopped then
    assert results[1]["lost"] == 1  # it is told that it was excluded


def test_one_that_is_stopped_for_less_is_waited_for(transport):
    for result in run(2, transport, stopped=1, seconds=1):
        assert result["total"] == 2.0 and result["seconds"] >= 0.9


def test_one_that_was_stopped_itself_accuses_nobody(transport):
    for result in run(2, transport, case="stopped_while_it_waits", heartbeat="0.5", seconds=1):
        assert result["total"] == 2.0


def test_nobody_is_lost_without_a_heartbeat(transport):
    for result in run(2, transport, heartbeat="0", stopped=1, seconds=1):
        assert result["total"] == 2.0


def test_a_sleeping_thread_is_slow_and_not_lost(monkeypatch):
    monkeypatch.setenv("TFDIST_HEARTBEAT_SECONDS", "0.3")

    def body(group):
        if group.rank == 1:
            time.sleep(1.2)
        return group.all_reduce(np.ones(8))[0]

    assert local.run(3, body) == [3.0] * 3
