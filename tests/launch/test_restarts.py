"""When a place is filled again: one table of lives."""

import pytest

from tfdist.launch.restarts import Record, decide

SHORT, LONG, MEMBER = (1.0, False), (60.0, False), (1.0, True)
LIVES = {
    "a place that keeps failing": (9, [SHORT] * 3, [0.1, 0.2, None]),
    "one that has taken part in between": (9, [SHORT, SHORT, MEMBER, SHORT, SHORT, SHORT], [0.1, 0.2, 0.1, 0.1, 0.2, None]),
    "long lives": (99, [LONG] * 9, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]),
    "a long life among short ones": (9, [SHORT, SHORT, LONG, SHORT, SHORT, SHORT], [0.1, 0.2, 0.4, 0.8, 1.6, None]),
    "members": (4, [MEMBER] * 5, [0.1, 0.1, 0.1, 0.1, None]),
    "no restarts": (0, [LONG], [None]),
}  # fmt: skip


@pytest.mark.parametrize("row", LIVES)
def test_delays(row):
    max_restarts, lives, expected = LIVES[row]
    record = Record()
    decided = [decide(record, max_restarts, *life) for life in lives]
    assert [delay for delay, _ in decided] == pytest.approx(expected)
    assert all((delay is None) == bool(why) for delay, why in decided)


def test_it_says_why_it_is_over():
    record = Record()
    assert decide(record, 0, *LONG)[1] == "--max-restarts is 0"
    decide(record, 1, *LONG)
    assert decide(record, 1, *LONG)[1] == "it was started again 1 times"
