"""SIGTERM: heard at the next step, by all workers at the same one."""

import os
import signal
import threading

import pytest

from tfdist.checkpoint.stopping import StopAgreement
from tfdist.checkpoint.termination import EXIT_CODE, TerminationNotice
from tfdist.cluster.store import StoreClient, StoreServer


@pytest.fixture
def outer():
    """What SIGTERM did before: it is noted here."""
    heard = []
    previous = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    yield heard
    signal.signal(signal.SIGTERM, previous)


@pytest.fixture
def store():
    with StoreServer(secret=b"secret") as server:
        yield lambda: StoreClient(server.address, b"secret")


def fit(notice):
    os.kill(os.getpid(), signal.SIGTERM)
    return notice.is_received


def test_the_first_signal_is_noted_and_the_second_acts(outer):
    notice = TerminationNotice("fit")
    notice.begin()
    assert not notice.is_received and notice.seconds_ago() == 0.0
    assert fit(notice) and not outer and notice.seconds_ago() >= 0
    assert fit(notice) and outer == [1]
    notice.end()
    notice.begin()
    assert not notice.is_received
    notice.end()
    notice.end()
    fit(notice)
    assert outer == [1, 1]


def test_outside_of_fit_it_acts_at_once(outer):
    notice = TerminationNotice("fit")
    notice.begin()
    os.kill(os.getpid(), signal.SIGTERM)
    assert outer == [1] and not notice.is_received


def test_another_thread_hears_nothing_and_fails_not(outer):
    notice = TerminationNotice("fit")
    thread = threading.Thread(target=lambda: (notice.begin(), notice.end()))
    thread.start()
    thread.join(10)
    fit(notice)
    assert outer == [1] and EXIT_CODE == 143


class Steps:
    """Workers that pass boundaries as those in step do: nobody ends step s before all have begun it."""

    def __init__(self, store, num_workers, is_in_step=True):
        self._agreements = [
            StopAgreement(store, "job", r, lambda: range(num_workers), is_in_step) for r in range(num_workers)
        ]
        self._barrier = threading.Barrier(num_workers)
        self._is_in_step = is_in_step
        self.stopped = {}

    def run(self, asked):
        threads = [threading.Thread(target=self._work, args=(rank, asked)) for rank in range(len(self._agreements))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        for agreement in self._agreements:
            agreement.close()
            agreement.close()
        return self.stopped

    def _work(self, rank, asked):
        for step in range(50):
            if self._is_in_step:
                self._barrier.wait(20)  # the collective of the step
            if self._agreements[rank].reached((step // 10, 0, step % 10), step >= asked.get(rank, 99)):
                self.stopped[rank] = step
                return


@pytest.mark.parametrize("asked", [{1: 7}, {0: 0}, {0: 9, 2: 9}, {0: 20, 1: 20, 2: 20}, {2: 48}])
def test_workers_in_step_stop_at_the_same_step(store, asked):
    expected = min(asked.values()) + 1
    assert Steps(store, 3).run(asked) == {rank: expected for rank in range(3)}


def test_workers_that_are_not_in_step_stop_where_they_are(store):
    stopped = Steps(store, 2, is_in_step=False).run({0: 5, 1: 3})
    assert stopped[1] <= 3 and stopped[0] <= 5


def test_workers_that_are_not_in_step_ask_behind_a_barrier(store):
    agreements = [StopAgreement(store, "job", rank, lambda: (0, 1), False) for rank in range(2)]
    assert all(agreement.needs_meeting and not agreement.is_announced() for agreement in agreements)
    agreements[1].reached((0, 0), True)
    agreements[0]._after = None  # as if it had not heard yet
    assert all(agreement.is_announced() for agreement in agreements)
    for agreement in agreements:
        agreement.close()
    assert not StopAgreement(None, "job", 0, lambda: (0,), False).needs_meeting


def test_the_chief_waits_until_others_have_left_and_no_longer_than_said(store):
    chief, other = (StopAgreement(store, "job", rank, lambda: (0, 1), False) for rank in range(2))
    chief.wait_left(0.01)
    other.close()
    other.leave()
    with store() as client:
        assert client.keys("tfdist/stop/job/left") == ["tfdist/stop/job/left/1"]
    chief.wait_left(20)
    chief.close()


def test_alone(store):
    assert not StopAgreement(None, "job", 0, lambda: (0, 1), True).reached((0, 0), False)
    assert StopAgreement(None, "job", 0, lambda: (0, 1), True).reached((0, 0), True)


def test_others_wait_for_the_last_checkpoint_and_no_longer_than_said(store):
    chief, other = (StopAgreement(store, "job", rank, lambda: (0, 1), True) for rank in range(2))
    chief.finished()
    other.wait_finished(20)
    nobody = StopAgreement(store, "other job", 1, lambda: (0, 1), True)
    nobody.wait_finished(0.01)
    for agreement in (chief, other, nobody):
        agreement.close()


def test_a_lost_store_or_worker_does_not_keep_anybody(monkeypatch):
    monkeypatch.setattr("tfdist.checkpoint.stopping._ACKNOWLEDGE_SECONDS", 0.01)
    with StoreServer(secret=b"secret") as server:
        agreement = StopAgreement(
            lambda: StoreClient(server.address, b"secret", timeout=0.1), "job", 0, lambda: (0, 1), True
        )
        assert not agreement.reached((0, 0, 5), True)
        assert agreement.reached((0, 0, 6), True)
    agreement.finished()
    agreement.wait_finished(1)
    agreement.close()
