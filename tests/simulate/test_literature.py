"""What the papers claim, in small: the direction, and about the size. README.md of tfdist/simulate has the figures."""

import statistics

import pytest

from tfdist.simulate import NoTask, Rule, TeacherTask, train
from tfdist.simulate.workers import constant, stumbling, varied
from tfdist.staleness import Asynchronous, Bounded, DelayCompensation, Synchronous

EIGHT_EPOCHS = 8 * 312  # batches of 32 of 10,000 examples
SEEDS = (0, 1, 2)


def error(task, num_workers, rule):
    return train(task, rule, [varied(constant(1.0), 0.1)] * num_workers, num_gradients=EIGHT_EPOCHS).error


@pytest.mark.parametrize("seed", SEEDS)
def test_staleness_scaled_steps_rescue_thirty_workers(seed):
    """Zhang et al. 2016: with 30 workers plain asynchronous SGD fails where the scaled one is as good as sequential."""
    task = TeacherTask(seed)
    sequential = error(task, 1, Rule(0.1, 0.9))
    unscaled = error(task, 30, Rule(0.1, 0.9))
    scaled = error(task, 30, Rule(0.1, 0.9, weighting="inverse"))
    assert unscaled > 0.45 and unscaled > 1.8 * sequential
    assert scaled < sequential + 0.05


def test_delay_compensation_closes_half_of_the_gap():
    """Zheng et al. 2017: DC-ASGD-a with 16 workers comes near sequential SGD where asynchronous SGD does not."""
    gaps, closed = [], []
    for seed in SEEDS:
        task = TeacherTask(seed, num_test_examples=5000, activation="tanh")
        sequential = error(task, 1, Rule(0.5))
        asynchronous = error(task, 16, Rule(0.5))
        compensated = error(task, 16, Rule(0.5, compensation=DelayCompensation(2.0, "adaptive", m=0.95)))
        gaps.append(asynchronous - sequential)
        closed.append(asynchronous - compensated)
    assert min(gaps) > 0.04 and min(closed) > 0.02
    assert statistics.mean(closed) >= 0.5 * statistics.mean(gaps)


def gradients_per_second(waiting, num_workers, seed, break_off=False):
    workers = [stumbling(constant(1.0), 0.05, 5)] * num_workers
    rule, count = Rule(waiting=waiting), 100 * num_workers
    return train(NoTask(), rule, workers, num_gradients=count, seed=seed, break_off=break_off).gradients_per_second


@pytest.mark.parametrize("seed", SEEDS)
def test_backup_workers_hide_stragglers(seed):
    """Chen et al. 2016: 12 of 100 as backup, 5 % of the steps 5x slow. An ideal 88 / 100 of 5x would be 4.4."""
    none = gradients_per_second(Synchronous(), 100, seed)
    assert 3.6 < gradients_per_second(Synchronous(12), 100, seed, break_off=True) / none < 4.6
    finishing = gradients_per_second(Synchronous(12), 100, seed) / none
    assert 1.7 < finishing < 2.7 and gradients_per_second(Synchronous(4), 100, seed) / none < finishing


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("num_workers", "published"), [(8, 1.72), (32, 2.68)])
def test_bounded_staleness_sits_between(seed, num_workers, published):
    """Ho et al. 2013: s = 4, 5 % of the steps 5x slow."""
    synchronous = gradients_per_second(Synchronous(), num_workers, seed)
    bounded = gradients_per_second(Bounded(4), num_workers, seed) / synchronous
    assert bounded == pytest.approx(published, rel=0.15)
    assert 1.1 * bounded < gradients_per_second(Asynchronous(), num_workers, seed) / synchronous
