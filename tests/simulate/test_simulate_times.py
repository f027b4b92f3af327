"""Virtual time against closed forms."""

import numpy as np
import pytest

from tfdist.errors import ConfigurationError
from tfdist.simulate import Network, NoTask, Rule, train
from tfdist.simulate.events import EventQueue
from tfdist.simulate.workers import constant, slowed, stumbling, varied
from tfdist.staleness import Asynchronous, Bounded, Synchronous


def speed(waiting, workers, num_gradients=600, task=None, **options):
    return train(task or NoTask(), Rule(waiting=waiting), workers, num_gradients=num_gradients, **options)


def test_events_run_in_order_of_time_and_then_of_planning():
    queue, log = EventQueue(), []
    for name, seconds in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        queue.after(seconds, lambda name=name: log.append((queue.now, name)))
    queue.after(1.5, lambda: queue.after(0.25, lambda: log.append((queue.now, "nested"))))
    queue.after(9.0, lambda: log.append("never"))
    queue.run(lambda: len(log) == 4)
    assert log == [(1.0, "a"), (1.0, "b"), (1.75, "nested"), (2.0, "c")]


@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_asynchronous_workers_do_not_disturb_each_other(num_workers):
    network = Network(latency_seconds=0.01, bytes_per_second=1e6)
    result = speed(Asynchronous(), [constant(0.1)] * num_workers, 70, NoTask(50_000), network=network)
    assert result.gradients_per_second == pytest.approx(num_workers / (0.1 + 2 * (0.01 + 0.05)))
    assert result.num_updates == result.num_gradients == 70 and result.waited_seconds == [0] * num_workers


def test_staleness_of_equal_workers_is_one_less_than_their_number():
    result = speed(Asynchronous(), [constant(0.1)] * 5, 1000)
    assert result.staleness == {0: 1, 1: 1, 2: 1, 3: 1, 4: 996}
    assert result.mean_staleness == pytest.approx(4, abs=0.02)


def test_a_permanent_straggler_costs_the_asynchronous_its_own_part_and_the_others_everything():
    workers = [slowed(constant(0.1), 5), *[constant(0.1)] * 3]
    assert speed(Asynchronous(), workers, 3200).gradients_per_second == pytest.approx(32, rel=0.01)
    for waiting in (Synchronous(), Bounded(4)):
        assert speed(waiting, workers, 3200).gradients_per_second == pytest.approx(4 / 0.5, rel=0.01)


@pytest.mark.parametrize("num_workers", [2, 4])
def test_synchronous_steps_take_the_slowest_workers_time(num_workers):
    """P(no straggler) = 0.9^m, so that a step takes 0.9^m + 3 (1 - 0.9^m) seconds."""
    result = speed(Synchronous(), [stumbling(constant(1.0), 0.1, 3)] * num_workers, 4000 * num_workers)
    quick = 0.9**num_workers
    assert result.seconds / result.num_updates == pytest.approx(quick + 3 * (1 - quick), rel=0.03)
    assert result.num_updates == 4000 and result.num_dropped == 0 and set(result.staleness) == {0}


def test_bounded_by_zero_is_as_slow_as_synchronous():
    workers = [stumbling(constant(1.0), 0.1, 3)] * 4
    assert speed(Bounded(0), workers).seconds == speed(Synchronous(), workers).seconds


def test_backup_workers_hide_as_many_permanent_stragglers():
    workers = [slowed(constant(0.1), 50)] * 2 + [constant(0.1)] * 4
    result = speed(Synchronous(2), workers, 400)
    assert result.seconds == pytest.approx(10) and result.num_updates == 100
    assert result.num_dropped == 2  # each at 5 s; those at 10 s are too late for the end, too


def test_breaking_off_starts_everybody_with_every_step():
    """The second fastest of 3: with c of them slow (binomial) a step takes 5 s where c >= 2, else 1."""
    workers, fraction = [stumbling(constant(1.0), 0.2, 5)] * 3, 0.2
    result = speed(Synchronous(1), workers, 8000, break_off=True)
    slow = 3 * fraction**2 * (1 - fraction) + fraction**3
    assert result.seconds / result.num_updates == pytest.approx(1 + 4 * slow, rel=0.03)
    assert result.num_dropped == result.num_updates
    assert result.seconds < speed(Synchronous(1), workers, 8000).seconds


def test_waiting_is_counted():
    result = speed(Synchronous(), [slowed(constant(1.0), 3), constant(1.0)], 20)
    assert result.seconds == pytest.approx(30) and result.waited_seconds == pytest.approx([0, 20], abs=2)


def test_compute_times():
    random = np.random.default_rng(0)
    assert slowed(constant(0.5), 3)(random) == 1.5
    times = [stumbling(constant(1.0), 0.25, 4)(random) for _ in range(4000)]
    assert set(times) == {1.0, 4.0} and np.mean(times) == pytest.approx(1.75, rel=0.05)
    times = [varied(constant(2.0), 0.5)(random) for _ in range(4000)]
    assert 1 <= min(times) < 1.01 and 2.99 < max(times) <= 3 and np.mean(times) == pytest.approx(2, rel=0.02)


def test_the_seed_decides():
    workers = [stumbling(constant(1.0), 0.1, 3)] * 4
    assert speed(Asynchronous(), workers, seed=1).seconds == speed(Asynchronous(), workers, seed=1).seconds
    assert speed(Asynchronous(), workers, seed=1).seconds != speed(Asynchronous(), workers, seed=2).seconds


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: constant(-1), "seconds is expected to be a number >= 0. Received: seconds=-1"),
        (lambda: slowed(constant(1), 0), "factor is expected to be a number > 0. Received: factor=0"),
        (lambda: stumbling(constant(1), 1, 5), "fraction is expected to be a number >= 0 and < 1. Received: fraction=1"),
        (lambda: stumbling(constant(1), 0.1, -5), "factor is expected to be a number > 0. Received: factor=-5"),
        (lambda: varied(constant(1), 2), "spread is expected to be a number >= 0 and < 1. Received: spread=2"),
        (lambda: Network(-1), "latency_seconds is expected to be a number >= 0. Received: latency_seconds=-1"),
        (lambda: Network(0, 0), "bytes_per_second is expected to be a number > 0. Received: bytes_per_second=0"),
        (lambda: speed(Asynchronous(), []), r"workers is expected to be at least one compute-time function. Received: workers=\[\]"),
        (lambda: speed(Asynchronous(), [constant(1)], 0), "num_gradients is expected to be an integer >= 1. Received: num_gradients=0"),
        (lambda: speed(Synchronous(1), [constant(1)]), "less than the number of workers, 1. Received: backup_workers=1"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(call, text):
    with pytest.raises(ConfigurationError, match=text):
        call()
