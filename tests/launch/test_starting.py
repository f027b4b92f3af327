"""A place whose process cannot be started, with a crew that has none to give."""

import pytest

from tfdist.launch import recovery
from tfdist.launch.crew import Slot
from tfdist.launch.job import Job
from tfdist.launch.recovery import Recovery
from tfdist.launch.restarts import RestartRules


class _Crew:
    def __init__(self, failures):
        self.workers, self.servers, self.failures, self.tries = [Slot(0, 0), Slot(1, 1)], [], failures, 0

    def start(self, slot):
        self.tries += 1
        slot.restart_at, slot.is_given_up = None, False
        if self.tries <= self.failures:
            raise BlockingIOError(11, "Resource temporarily unavailable")


class _Store:
    def excluded(self):
        return {}

    def is_over(self):
        return False

    def servers_wanted(self):
        return 0


@pytest.mark.parametrize("failures, ends", [(2, "started"), (9, "given up")])
def test_it_is_tried_again_as_often_as_restarts_are_allowed(monkeypatch, failures, ends):
    now, said, crew = [0.0], [], _Crew(failures)
    monkeypatch.setattr(recovery.time, "monotonic", lambda: now[0])
    mended = Recovery(Job(("x.py",), restarts=RestartRules(max_restarts=3)), _Store(), crew, said.append)
    slot = crew.workers[1]
    slot.restart_at = 0.0
    for seconds in range(100):
        now[0] = float(seconds)
        assert mended.look() == ""
    assert crew.tries == (3 if ends == "started" else 4)
    assert slot.restart_at is None and slot.is_given_up == (ends == "given up")
    text = "rank 1 could not be started ([Errno 11] Resource temporarily unavailable); "
    expected = [f"{text}tried again in 10 s."] * min(failures, 3) + [f"{text}given up."] * (ends == "given up")
    assert said == expected
