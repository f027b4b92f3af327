import random

import pytest

from tfdist.errors import ConfigurationError
from tfdist.staleness import WAITING, Asynchronous, Bounded, Synchronous, Verdict

RULES = {  # one row a rule: what makes it for 5 workers
    "async": Asynchronous,
    "bounded 0": lambda: Bounded(0),
    "bounded 3": lambda: Bounded(3),
    "sync": Synchronous,
    "sync 2": lambda: Synchronous(2),
}
NUM_WORKERS = 5


def begun(rule, num_workers):
    rule.begin(num_workers)
    return rule


def step(rule, worker):
    assert rule.may_start(worker)
    rule.start(worker)
    return rule.push(worker)


def random_walk(rule, seed, num_events):
    """Starts and pushes in random order; yields (worker, verdict, steps pushed by worker) after each push."""
    choose = random.Random(seed)
    computing, idle, pushed = set(), set(range(NUM_WORKERS)), [0] * NUM_WORKERS
    for _ in range(num_events):
        able = [worker for worker in sorted(idle) if rule.may_start(worker)]
        assert able or computing, "nobody may go on"
        worker = choose.choice(able + sorted(computing))
        if worker in idle:
            idle.remove(worker)
            rule.start(worker)
            computing.add(worker)
        else:
            computing.remove(worker)
            pushed[worker] += 1
            yield worker, rule.push(worker), pushed
            idle.add(worker)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(5))
def test_somebody_can_always_go_on(name, seed):
    assert len(list(random_walk(begun(RULES[name](), NUM_WORKERS), seed, 400))) > 150


@pytest.mark.parametrize("name", RULES)
def test_begin_forgets(name):
    rule = begun(RULES[name](), NUM_WORKERS)
    first = [(worker, verdict) for worker, verdict, _ in random_walk(rule, 1, 200)]
    rule.begin(NUM_WORKERS)
    assert [(worker, verdict) for worker, verdict, _ in random_walk(rule, 1, 200)] == first


@pytest.mark.parametrize("name", RULES)
def test_those_who_stay_go_on_when_others_leave(name):
    rule = begun(RULES[name](), NUM_WORKERS)
    for worker in (1, 4):
        assert step(rule, worker) is not Verdict.DROP
    for worker in (0, 2, 3, 4):
        rule.leave(worker)
    assert [step(rule, 1) for _ in range(6)].count(Verdict.DROP) == 0


def test_asynchronous_never_waits():
    rule = begun(Asynchronous(), 2)
    assert {step(rule, 0) for _ in range(100)} == {Verdict.APPLY}


@pytest.mark.parametrize("bound", [0, 1, 4])
def test_bounded_stops_the_first_s_steps_ahead_of_the_last(bound):
    rule = begun(Bounded(bound), 3)
    for _ in range(bound + 1):
        assert step(rule, 0) is Verdict.APPLY
    assert not rule.may_start(0) and rule.may_start(1)
    step(rule, 1)
    assert not rule.may_start(0)
    step(rule, 2)
    assert rule.may_start(0)


@pytest.mark.parametrize("bound", [0, 1, 4])
def test_bounded_spread(bound):
    spreads = {max(pushed) - min(pushed) for _, _, pushed in random_walk(begun(Bounded(bound), 5), 3, 2000)}
    assert max(spreads) == bound + 1


@pytest.mark.parametrize(("num_workers", "backup_workers"), [(1, 0), (4, 0), (4, 1), (4, 3)])
def test_synchronous_takes_the_first_and_drops_the_late(num_workers, backup_workers):
    rule = begun(Synchronous(backup_workers), num_workers)
    needed = num_workers - backup_workers
    for worker in range(num_workers):
        rule.start(worker)
    verdicts = [rule.push(worker) for worker in range(num_workers)]
    assert verdicts == [Verdict.COLLECT] * (needed - 1) + [Verdict.COMPLETE] + [Verdict.DROP] * backup_workers
    assert all(rule.may_start(worker) for worker in range(num_workers))


def test_synchronous_contributors_wait_for_the_step():
    rule = begun(Synchronous(1), 3)
    assert step(rule, 0) is Verdict.COLLECT
    assert not rule.may_start(0) and rule.may_start(1)
    assert step(rule, 1) is Verdict.COMPLETE
    assert rule.may_start(0) and rule.may_start(2)


def test_a_late_worker_goes_on_with_the_current_step():
    rule = begun(Synchronous(1), 3)
    rule.start(2)
    step(rule, 0), step(rule, 1)
    assert rule.push(2) is Verdict.DROP
    assert step(rule, 2) is Verdict.COLLECT and step(rule, 0) is Verdict.COMPLETE


def test_a_step_is_complete_when_the_missing_one_leaves():
    rule = begun(Synchronous(), 3)
    assert [step(rule, 0), step(rule, 1)] == [Verdict.COLLECT] * 2
    assert rule.leave(2) and not rule.leave(0)
    assert step(rule, 1) is Verdict.COMPLETE


def test_modes_have_names():
    assert WAITING == {"async": Asynchronous, "bounded": Bounded, "sync": Synchronous}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Bounded(-1), "staleness_bound is expected to be an integer >= 0. Received: staleness_bound=-1"),
        (lambda: Bounded(None), "Received: staleness_bound=None"),
        (lambda: Synchronous(1.5), "backup_workers is expected to be an integer >= 0. Received: backup_workers=1.5"),
        (
            lambda: Synchronous(2).begin(2),
            "less than the number of workers, 2. Received: backup_workers=2. Lower it, or",
        ),
    ],
)
def test_mistakes_are_refused(call, text):
    with pytest.raises(ConfigurationError, match=text):
        call()
