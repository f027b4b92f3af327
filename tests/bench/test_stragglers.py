import json
import sys

import pytest

from tests.bench.test_serve import _load
from tests.launch.launching import ROOT, tfdist
from tfdist.bench import stragglers
from tfdist.bench.crew import CrewFailedError

PERMANENT, TRANSIENT = stragglers.SCENARIOS["permanent"], stragglers.SCENARIOS["transient"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "1"], "an integer >= 2"),
        (["--variants", "ring,own"], "Received: 'ring,own'"),
        (["--variants", "ring,ring"], "each once"),
        (["--scenarios", "often"], "names from permanent, transient"),
        (["--step-ms", "0"], "a number of seconds > 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    result = tfdist("bench", "stragglers", *arguments)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and message in result.stderr


def _chosen(*arguments):
    return stragglers._parser().parse_args(arguments)


def test_scenarios_say_who_is_slow():
    assert [entry["factor"] for entry in PERMANENT.slowness(3, 0.02)] == [1.0, 1.0, 5.0]
    assert PERMANENT.speeds(3) == [1.0, 1.0, 0.2]
    assert TRANSIENT.slowness(2, 0.02) == [{"seconds": 0.02, "factor": 10.0, "share": 0.05}] * 2
    assert TRANSIENT.speeds(2) == pytest.approx([1 / 1.45] * 2)


def test_an_epoch_is_as_long_as_asked_for():
    chosen = _chosen("--workers", "2", "--step-ms", "20", "--epoch-seconds", "2")
    plans = {name: stragglers.plan(variant, PERMANENT, chosen) for name, variant in stragglers.VARIANTS.items()}
    assert plans["own"] == plans["async"] == plans["backup"] == [100, 20]
    assert plans["ring"] == plans["sync"] == plans["bounded"] == [20, 20]


RECORDS = [
    {"pushes": 8, "dropped": 0, "waited_seconds": 1.0, "staleness": {"0": 2, "3": 6}},
    {"pushes": 2, "dropped": 2, "waited_seconds": 0.0, "staleness": {}},
]


def test_workers_of_one_model_end_together_and_dropped_gradients_do_not_count():
    replies = [{"seconds": time, "batches": number, "record": record}
               for time, number, record in zip((4.0, 5.0), (8, 2), RECORDS)]  # fmt: skip
    turn = stragglers.summarize(replies, [5, 5], 32, is_one_model=True)
    assert turn.speed == pytest.approx(10 * 32 / 5.0 * 0.8) and turn.dropped == pytest.approx(0.2)
    assert turn.batches == [8, 2] and turn.waited == [0.2, 0.0] and turn.staleness == [2.25, 0.0]


def test_unrelated_workers_have_a_speed_each():
    replies = [{"seconds": time, "batches": 5, "record": None} for time in (1.0, 5.0)]
    turn = stragglers.summarize(replies, [5, 5], 32, is_one_model=False)
    assert turn.speed == pytest.approx(160 + 32) and turn.waited == turn.staleness == [] and turn.dropped == 0


def _turn(speed):
    return stragglers.Turn(speed, [1, 1], [], [], 0.0)


def test_the_share_of_own_speed_is_that_of_the_same_round():
    own, ring = [_turn(100), _turn(50), _turn(200)], [_turn(50), _turn(20), _turn(120)]
    rows = stragglers.results({("permanent", "own"): own, ("permanent", "ring"): ring})
    assert [row["of_own"] for row in rows] == [1.0, 0.5] and rows[1]["examples_per_second"] == 50
    assert stragglers.results({("permanent", "ring"): ring})[0]["of_own"] is None


class PretendedCrew:
    """Two workers of which each batch takes a second; the turn `fails_at` fails."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = [], fails_at

    def ask(self, do, batches, **arguments):
        self.asked.append(arguments)
        if len(self.asked) == self.fails_at:
            raise CrewFailedError("ring: gone")
        return [{"seconds": float(number), "batches": number, "record": None} for number in batches]


def test_who_fails_is_left_out_and_the_others_go_on(capsys):
    chosen = _chosen("--workers", "2", "--rounds", "2", "--scenarios", "permanent")
    crews, failures = {"own": PretendedCrew(), "ring": PretendedCrew(fails_at=3)}, []
    turns = stragglers._measure(crews, chosen, failures)
    assert list(turns) == [("permanent", "own")] and len(turns["permanent", "own"]) == 2 and len(failures) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "tfdist bench: ring: gone", "tfdist bench: round 2 of 2, permanent, own: 64 examples/s"
    ]  # fmt: skip


def test_fit_is_told_the_batch_that_its_strategy_means():
    chosen, crew = _chosen("--workers", "2", "--batch", "8"), PretendedCrew()
    for name in ("own", "ring", "async", "backup"):
        stragglers._train(crew, name, PERMANENT, [4, 4], chosen)
    assert [arguments["batch_size"] for arguments in crew.asked] == [8, 16, 8, 16]


def _slowness(monkeypatch, rank, *arguments, steps):
    monkeypatch.setitem(sys.modules, "serve", _load("serve"))
    program, slept = _load("fit_stragglers"), []
    monkeypatch.setattr(program.time, "sleep", slept.append)
    slowness = program.Slowness(rank)
    slowness.set(*arguments)
    for _ in range(steps):
        slowness.sleep()
    assert slowness.steps == steps
    return slept


def test_slow_steps_are_the_share_asked_for_and_the_same_every_time(monkeypatch):
    slept = _slowness(monkeypatch, 1, 2.0, 10.0, 0.25, steps=400)
    assert set(slept) == {2.0, 20.0} and 60 <= slept.count(20.0) <= 140
    assert slept == _slowness(monkeypatch, 1, 2.0, 10.0, 0.25, steps=400)
    assert slept != _slowness(monkeypatch, 2, 2.0, 10.0, 0.25, steps=400)
    assert _slowness(monkeypatch, 1, 2.0, 5.0, None, steps=3) == [10.0] * 3


def test_a_record_is_that_of_the_epoch(monkeypatch):
    monkeypatch.setitem(sys.modules, "serve", _load("serve"))
    subtract = _load("fit_stragglers").subtract
    before = {"pushes": 5, "staleness": {"0": 5}}
    assert subtract({"pushes": 9, "staleness": {"0": 6, "2": 3}}, before) == {
        "pushes": 4,
        "staleness": {"0": 1, "2": 3},
    }


@pytest.mark.multiprocess
@pytest.mark.slow
def test_two_workers(monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", ROOT)
    chosen = _chosen("--workers", "2", "--batch", "4", "--step-ms", "2", "--epoch-seconds", "0.1", "--rounds", "1",
                     "--scenarios", "permanent", "--variants", "async,backup", "--json")  # fmt: skip
    assert stragglers.run(chosen) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["variant"] for line in lines] == ["own", "async", "backup"]
    for line in lines:
        made, planned = (
            sum(line["batches"]),
            sum(stragglers.plan(stragglers.VARIANTS[line["variant"]], PERMANENT, chosen)),
        )
        assert line["examples_per_second"] > 0 and made >= planned
    assert all(len(line["staleness"]) == 2 for line in lines[1:])
