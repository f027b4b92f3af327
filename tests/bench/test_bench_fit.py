import json
import time

import pytest

from tests.launch.launching import ROOT, tfdist
from tfdist.bench import budget, fit, peers, variants
from tfdist.bench.crew import CrewFailedError

KEYS = {"variant", "workers", "model", "batch", "samples_per_second", "step_ms", "compute_ms", "exposed_ms"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "huge"], "invalid choice: 'huge'"),
        (["--batch", "0"], "an integer >= 1"),
        (["--budget", "0"], "a number of seconds > 0"),
        (["--workers", "x"], "Received: 'x'"),
        (["--strategy", "async,mirrored"], "names from ring, async, sync, each once"),
        (["--peer-python", "/no/such/python"], "--peer-python is expected to be a program"),
    ],
)
def test_a_mistake_is_one_line(arguments, message):
    result = tfdist("bench", "fit", *arguments)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and message in result.stderr


def test_missing_legacy_keras_says_what_to_install():
    assert variants.missing("python", {"tf-keras": "2.21.0"}) is None
    assert "Run `python -m pip install --no-deps tf-keras`" in variants.missing("python", {})


def test_exposed_is_what_unrelated_workers_do_not_need():
    chosen = fit._parser().parse_args(["--workers", "2", "--batch", "32"])
    tfdist_row, unrelated, one, *_ = variants.table(2)
    rows = fit._results({tfdist_row: [3e-3, 5e-3, 4e-3], unrelated: [3e-3], one: [2e-3]}, chosen)
    assert [row.workers for row in rows] == [2, 2, 1] and [row.batch for row in rows] == [64, 32, 32]
    assert [row.samples_per_second for row in rows] == pytest.approx([64 / 4e-3, 2 * 32 / 3e-3, 32 / 2e-3])
    assert fit.as_dict(rows[0])["exposed_ms"] == pytest.approx(1.0)
    assert fit.as_dict(rows[1])["exposed_ms"] == fit.as_dict(rows[2])["exposed_ms"] == 0
    assert set(fit.as_dict(rows[0])) == KEYS


def test_strategies_have_rows_of_their_own_and_counterparts_of_tensorflow():
    names = [variant.name for variant in variants.table(2, ["async", "ring", "sync"])]
    assert names[:4] == ["tfdist async", "tfdist", "tfdist sync", variants.COMPUTE]
    counterparts = {
        strategy: [v.name for v in variants.of_tensorflow(2, [strategy])] for strategy in variants.STRATEGIES
    }
    assert counterparts == {
        "ring": ["MultiWorkerMirrored"], "async": ["TF ParameterServer"], "sync": ["TF ParameterServer"]
    }  # fmt: skip


def test_asynchronous_workers_make_a_step_each_in_the_time_of_one():
    chosen = fit._parser().parse_args(["--workers", "2", "--batch", "32", "--steps", "10"])
    row = variants.own(2, "async")
    assert fit._most_steps(row, chosen) == 10 and row.num_batches == 1
    crew = SilentCrew([[{"seconds": [1e-3, 2e-3]}, {"seconds": [1e-3, 1e-3]}]])
    assert fit._train(crew, row, 32, 10, 2) == [2e-3, 4e-3]
    assert crew.asked == [{"batch": 32, "steps": 20, "epochs": 2}]
    (result,) = fit._results({row: [4e-3]}, chosen)
    assert (result.workers, result.batch) == (2, 32) and result.samples_per_second == pytest.approx(64 / 4e-3)


class SilentCrew:
    """Answers as ranks would, the second time with a failure."""

    def __init__(self, replies):
        self.replies, self.asked = list(replies), []

    def ask(self, do, **arguments):
        self.asked.append(arguments)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply


def test_a_variant_that_fails_is_left_out(capsys):
    chosen = fit._parser().parse_args(["--rounds", "2"])
    good, bad, *_ = variants.table(2)
    crews = {
        good: SilentCrew([[{"seconds": [1.0, 1.0]}, {"seconds": [2.0, 0.5]}]] * 3),
        bad: SilentCrew([[{"seconds": [1.0]}], CrewFailedError("plain Keras: gone")]),
    }
    failures = []
    assert fit._measure(crews, chosen, failures, time.monotonic() + 1e6) == {good: [2.0, 1.0] * 2}
    assert len(failures) == 1 and capsys.readouterr().err.splitlines() == [
        "tfdist bench: tfdist is ready: 1500.0 ms a step",
        "tfdist bench: unrelated workers is ready: 1000.0 ms a step",
        "tfdist bench: round 1 of 2, tfdist: 1500.0 ms a step",
        "tfdist bench: plain Keras: gone",
        "tfdist bench: round 2 of 2, tfdist: 1500.0 ms a step",
    ]


def test_steps_that_are_slower_than_they_seemed_end_the_rounds_early(monkeypatch, capsys):
    chosen = fit._parser().parse_args(["--rounds", "7", "--budget", "100", "--steps", "2"])
    clock = iter([0.0, 0.0, 0.0, 50.0, 90.0])
    monkeypatch.setattr(fit.time, "monotonic", lambda: next(clock))
    crews = {variants.table(1)[0]: SilentCrew([[{"seconds": [1.0]}]] * 10)}
    (times,) = fit._measure(crews, chosen, [], deadline=100.0).values()
    assert len(times) == 2
    assert capsys.readouterr().err.endswith("tfdist bench: ends after round 2 of 7: --budget 100 is spent\n")


PLANS = {  # seconds left, seconds of a step of a and b; rounds and the steps of a and b: 7 x 30 steps x 3 epochs at most
    "enough": (1000.0, {"a": 0.01, "b": 0.1}, False, 7, {"a": 30, "b": 30}),
    "fewer rounds": (50.0, {"a": 0.01, "b": 0.1}, False, 5, {"a": 30, "b": 30}),
    "as few rounds as are worth it": (30.0, {"a": 0.01, "b": 0.1}, False, 3, {"a": 30, "b": 30}),
    "fewer steps for the slow": (25.0, {"a": 0.01, "b": 0.1}, False, 3, {"a": 30, "b": 13}),
    "never fewer than ten": (1.0, {"a": 0.001, "b": 9.0}, False, 3, {"a": 30, "b": 10}),
    "the steps asked for": (1.0, {"a": 0.01, "b": 9.0}, True, 1, {"a": 30, "b": 30}),
    "late already": (-5.0, {"a": 0.01, "b": 0.1}, False, 3, {"a": 10, "b": 10}),
    "nobody left": (9.0, {}, False, 7, {"a": 30, "b": 30}),
}


@pytest.mark.parametrize("row", PLANS)
def test_a_budget_is_divided(row):
    seconds, step_seconds, fixed_steps, rounds, steps = PLANS[row]
    plan = budget.divide(seconds, step_seconds, rounds=7, steps={"a": 30, "b": 30}, epochs=3, fixed_steps=fixed_steps)
    assert (plan.rounds, plan.steps) == (rounds, steps)


def test_fewer_rounds_than_three_are_kept():
    plan = budget.divide(1.0, {"a": 1.0}, rounds=2, steps={"a": 30}, epochs=2)
    assert (plan.rounds, plan.steps) == (2, {"a": 10})


@pytest.mark.multiprocess
@pytest.mark.slow
def test_fit_of_two_workers(monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", ROOT)
    chosen = fit._parser().parse_args(["--batch", "8", "--rounds", "1", "--steps", "3", "--epochs", "1", "--json"])
    rows = variants.table(2, ["ring", "async"])[:3]
    assert fit.run(chosen, peers.Setting(world_size=2), rows) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["variant"], line["workers"], line["batch"]) for line in lines] == [
        ("tfdist", 2, 16), ("tfdist async", 2, 8), (variants.COMPUTE, 2, 8)
    ]  # fmt: skip
    assert all(set(line) == KEYS and line["samples_per_second"] > 0 for line in lines)
    assert lines[0]["compute_ms"] == lines[1]["compute_ms"] == lines[2]["step_ms"]
