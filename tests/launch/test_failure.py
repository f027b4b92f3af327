"""Who is blamed: one table."""

import pytest

from tfdist.errors import WorkerLostError
from tfdist.launch import failure, report
from tfdist.launch.failure import Failure


def told(kind="ValueError", lost_rank=None, message="m"):
    return {"type": kind, "message": message, "time": 0.0, "lost_rank": lost_rank}


CULPRITS = {
    "the only one": ([Failure(2, 1, 5.0)], 2),
    "the first": ([Failure(0, 1, 5.0), Failure(1, 1, 4.0)], 1),
    "the cause, though seen later": ([Failure(0, 1, 4.0, told("WorkerLostError", 1)), Failure(1, 1, 5.0, told())], 1),
    "a killed one, though seen later": ([Failure(0, 1, 4.0, told("WorkerLostError", 1)), Failure(1, -9, 5.0)], 1),
    "not the one that timed out": ([Failure(0, 1, 4.0, told("CollectiveTimeoutError")), Failure(1, -11, 5.0)], 1),
    "not the one that says so on stderr": (
        [Failure(0, 1, 4.0, None, ("tfdist.errors.WorkerLostError: lost rank 1",)), Failure(1, 3, 5.0)], 1
    ),
    "not the one that says so through TensorFlow": (
        [Failure(0, 1, 4.0, None, ("UnavailableError: [tfdist WorkerLostError peer=1] x", "")), Failure(1, 3, 5.0)], 1
    ),
    "a chain of losses": (
        [Failure(0, 1, 4.0, told("WorkerLostError", 1)), Failure(1, 1, 5.0, told("WorkerLostError", 2))], 1
    ),
    "a loss of one that is not here": ([Failure(1, 1, 5.0, told("WorkerLostError", 7))], 1),
    "a killed one that once wrote of a loss": ([Failure(0, -9, 5.0, None, ("lost rank 1",)), Failure(1, 1, 6.0)], 0),
}  # fmt: skip


@pytest.mark.parametrize("row", CULPRITS)
def test_culprit(row):
    failures, rank = CULPRITS[row]
    assert failure.find_culprit(failures).rank == rank
    assert failure.find_culprit(failures[::-1]).rank == rank


TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "x.py", line 1, in <module>',
    "KeyError: 1",
]


def test_only_the_last_traceback_is_shown_with_its_causes():
    handled = [*TRACEBACK, "2026 warning: went on"]
    chain = [*TRACEBACK, "", failure._LINKS[0], "", *TRACEBACK, "", failure._LINKS[1], "", *TRACEBACK]
    text = failure.describe(Failure(1, 1, 0.0, None, (*handled, *chain, "", "")), 4, 1.25)
    head, *lines = text.split("\n")
    assert head == "tfdist run: rank 1 of 4 failed with exit code 1 after 1.2 s. Its traceback:"
    assert lines == chain


def test_exception_groups_are_tracebacks():
    lines = ["noise", "  + Exception Group Traceback (most recent call last):", "  |   File"]
    assert failure.describe(Failure(0, 1, 0.0, None, tuple(lines)), 1, 0.0).split("\n")[1:] == lines[1:]


def test_without_a_traceback_the_last_lines_are_shown():
    lines = tuple(f"line {number}" for number in range(30))
    text = failure.describe(Failure(0, -15, 0.0, None, lines), 2, 0.0)
    assert text.split("\n") == [
        "tfdist run: rank 0 of 2 was killed by SIGTERM after 0.0 s. Its last lines on stderr:", *lines[-12:]
    ]  # fmt: skip


def test_a_loss_points_to_the_rank():
    text = failure.describe(Failure(0, 1, 0.0, told("WorkerLostError", 3, "lost")), 4, 0.0)
    assert text.endswith("It lost rank 3: see that rank's output. Its report:\nWorkerLostError: lost")


def test_unknown_signals_have_a_number():
    assert "was killed by signal 63 after" in failure.describe(Failure(0, -63, 0.0), 1, 0.0)


def test_exit_codes_are_those_of_a_shell():
    assert failure.exit_code(Failure(0, 3, 0.0)) == 3 and failure.exit_code(Failure(0, -9, 0.0)) == 137


def test_a_report_finds_the_loss_in_the_chain_of_causes():
    try:
        try:
            raise WorkerLostError("lost rank 2", rank=2)
        except WorkerLostError as error:
            raise RuntimeError("fit failed") from error
    except RuntimeError as error:
        described = report.describe(error)
    assert (described["type"], described["lost_rank"], described["message"]) == ("WorkerLostError", 2, "fit failed")
    assert report.describe(ValueError("x"))["lost_rank"] is None
    assert report.describe(WorkerLostError("who?"))["type"] == "WorkerLostError"


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"{}", b"\xff", b'{"type": 1, "message": 2, "time": "x", "lost_rank": 0}']
)
def test_reports_that_are_none_are_ignored(value):
    assert report.parse(value) is None
