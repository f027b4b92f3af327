"""Turns, with crews that only pretend."""

import json

import pytest

from tfdist.bench import rounds
from tfdist.bench.crew import CrewFailedError

WORLD_SIZE = 2


class PretendedCrew:
    """Ranks 0 and 1 need `seconds` and twice as long; everything asked for is written down."""

    world_size = WORLD_SIZE

    def __init__(self, name, log, seconds=1e-3, digests=("a", "a"), fails_at=None, idle_seconds=0.0):
        self.name, self.log, self.seconds, self.digests = name, log, seconds, digests
        self.fails_at, self.idle_seconds = fails_at, idle_seconds
        self.used = 0.0

    def ask(self, do, **arguments):
        self.log.append((self.name, do, arguments))
        if do == "prepare":
            return [{"digest": digest} for digest in self.digests]
        if do == "release":
            return [{"rss_mb": 50.0}, {"rss_mb": 60.0}]
        if self.fails_at is not None and sum(entry[:2] == (self.name, do) for entry in self.log) > self.fails_at:
            raise CrewFailedError(f"{self.name}: gone")
        return [{"seconds": [self.seconds * (rank + 1)] * arguments["blocks"]} for rank in range(WORLD_SIZE)]

    def cpu_seconds(self):
        self.used += self.idle_seconds
        return self.used


def turns_of(log):
    return [name for name, do, _ in log if do == "measure"][6:]  # after three calibrations each


def run(*crews, num_rounds=4):
    crews, warnings = list(crews), []
    rows = rounds.measure(crews, 1000, rounds=num_rounds, warn=warnings.append)
    return rows, [crew.name for crew in crews], warnings


def test_the_order_rotates_and_the_slowest_rank_counts():
    log = []
    rows, _, warnings = run(PretendedCrew("a", log), PretendedCrew("b", log, seconds=3e-3))
    assert turns_of(log) == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert [(row.peer, row.nproc, row.bytes, row.rss_mb) for row in rows] == [
        ("a", 2, 1000, 60.0),
        ("b", 2, 1000, 60.0),
    ]
    assert [row.seconds_median for row in rows] == [2e-3, 6e-3] and rows[0].rounds == (2e-3,) * 4
    assert warnings == []


@pytest.mark.parametrize(
    ("seconds", "iterations", "blocks"), [(1e-7, 5000, 20), (1e-4, 5, 20), (5e-3, 1, 3), (0.2, 1, 1)]
)
def test_blocks_last_a_millisecond_and_turns_thirty(seconds, iterations, blocks):
    log = []
    run(PretendedCrew("a", log, seconds))
    assert log[-2][2] == {"warmup": iterations, "iterations": iterations, "blocks": blocks}
    assert json.dumps(log[-2][2])


def test_ranks_with_other_bits_fail():
    rows, left, warnings = run(PretendedCrew("a", []), PretendedCrew("b", [], digests=("a", "b")))
    assert [row.peer for row in rows] == left == ["a"]
    assert "b: all ranks were expected to get the same bits of 1000 bytes. Received: ['a', 'b']" in warnings[0]


def test_who_fails_is_left_out_and_the_others_go_on():
    log = []
    rows, left, warnings = run(PretendedCrew("a", log, fails_at=4), PretendedCrew("b", log))
    assert [row.peer for row in rows] == left == ["b"] and len(rows[0].rounds) == 4
    assert warnings == ["a: gone"]


def test_who_works_out_of_turn_is_named():
    _, left, warnings = run(PretendedCrew("a", [], idle_seconds=0.5))
    assert left == ["a"] and len(warnings) == 1
    assert "a used" in warnings[0] and "of processor time while others were measured" in warnings[0]


def test_rounds_end_after_the_given_time_but_not_before_the_third(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(rounds.time, "monotonic", lambda: float(next(clock)))
    crews = [PretendedCrew("a", [])]
    rows = rounds.measure(crews, 1000, rounds=50, seconds=0.5, warn=pytest.fail)
    assert len(rows[0].rounds) == 3
