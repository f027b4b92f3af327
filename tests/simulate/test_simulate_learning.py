"""What the simulated server computes, against loops of plain NumPy."""

import numpy as np
import pytest

from tfdist.errors import ConfigurationError
from tfdist.simulate import NoTask, Rule, TeacherTask, train
from tfdist.simulate.workers import constant, stumbling
from tfdist.staleness import Asynchronous, Bounded, DelayCompensation, Synchronous

RULES = {  # what one worker, whose gradients are never stale, must not notice
    "async": Rule(waiting=Asynchronous()),
    "bounded": Rule(waiting=Bounded(0)),
    "sync": Rule(waiting=Synchronous()),
    "inverse": Rule(weighting="inverse"),
    "exponential": Rule(weighting="exponential"),
    "compensated": Rule(compensation=DelayCompensation(2.0)),
}


@pytest.fixture(scope="module")
def task():
    return TeacherTask(1, num_examples=256, num_test_examples=100)


def sequential(task, num_steps, momentum=0.0, num_workers=1):
    theta = task.initial()
    velocity = np.zeros_like(theta)
    for step in range(num_steps):
        batches = range(step * num_workers, (step + 1) * num_workers)
        velocity = momentum * velocity - 0.1 * sum(task.gradient(theta, batch) for batch in batches) / num_workers
        theta = theta + velocity
    return theta


@pytest.mark.parametrize("name", RULES)
def test_one_worker_is_sequential_sgd_to_the_bit(task, name):
    result = train(task, RULES[name], [constant(1.0)], num_gradients=30)
    assert np.array_equal(result.theta, sequential(task, 30)) and result.staleness == {0: 30}


def test_momentum_is_as_in_plain_sgd(task):
    result = train(task, Rule(momentum=0.9), [constant(1.0)], num_gradients=30)
    assert np.array_equal(result.theta, sequential(task, 30, 0.9))


@pytest.mark.parametrize("num_workers", [2, 4])
def test_synchronous_workers_are_one_with_a_big_batch(num_workers):
    small, big = TeacherTask(2, num_examples=640), TeacherTask(2, num_examples=640, batch_size=32 * num_workers)
    workers = [stumbling(constant(1.0), 0.2, 3)] * num_workers
    result = train(small, Rule(waiting=Synchronous()), workers, num_gradients=5 * num_workers)
    assert result.num_updates == 5
    np.testing.assert_allclose(result.theta, sequential(big, 5), rtol=1e-10, atol=1e-13)


def test_backup_workers_average_those_who_came_first(task):
    """Workers 0 and 1 start step 1 with batches 3 and 4, worker 2 is busy with batch 2 for good."""
    workers = [constant(1.0), constant(1.0), constant(100.0)]
    result = train(task, Rule(waiting=Synchronous(1)), workers, num_gradients=4)
    theta = task.initial()
    for batches in ((0, 1), (3, 4)):
        theta = theta - 0.1 * sum(task.gradient(theta, batch) for batch in batches) / 2
    np.testing.assert_allclose(result.theta, theta, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("weighting, second", [("none", 1.0), ("inverse", 0.5), ("exponential", np.exp(-0.2))])
def test_a_stale_gradient_is_of_the_parameters_then_and_weighted_now(task, weighting, second):
    """Three workers push in turn: the third's first gradient is two updates late."""
    result = train(task, Rule(weighting=weighting), [constant(1.0)] * 3, num_gradients=3)
    first = {"none": 1.0, "inverse": 1.0, "exponential": np.exp(-0.1)}[weighting]
    theta = task.initial()
    gradients = [task.gradient(theta, batch) for batch in range(3)]
    expected = theta - 0.1 * (gradients[0] + first * gradients[1] + second * gradients[2])
    np.testing.assert_allclose(result.theta, expected, rtol=1e-12, atol=1e-15)
    assert result.staleness == {0: 1, 1: 1, 2: 1}


def test_compensation_sees_the_parameters_then_and_now(task):
    rule = Rule(compensation=DelayCompensation(2.0, "constant"))
    result = train(task, rule, [constant(1.0)] * 2, num_gradients=2)
    then = task.initial()
    first, second = task.gradient(then, 0), task.gradient(then, 1)
    now = then - 0.1 * first
    expected = now - 0.1 * (second + 2 * second * second * (now - then))
    np.testing.assert_allclose(result.theta, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_gradients_are_those_of_the_loss(activation):
    """Along the gradient a small step lowers the cross-entropy by its squared length; an epoch's rows are all rows, once."""
    task = TeacherTask(3, num_examples=64, activation=activation)
    assert sorted([*task._rows(0), *task._rows(1)]) == list(range(64)) and set(task._rows(2)) != set(task._rows(0))
    theta = task.initial()
    gradient = task.gradient(theta, 0)

    def loss(theta):
        inputs, labels = (part[task._rows(0)] for part in task._train)
        first, first_bias = theta[:2048].reshape(32, 64), theta[2048:2112]
        second, second_bias = theta[2112:2752].reshape(64, 10), theta[2752:]
        values = inputs @ first + first_bias
        logits = (np.tanh(values) if activation == "tanh" else np.maximum(values, 0)) @ second + second_bias
        return np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(32), labels])

    assert theta.size == 2762 and task.num_bytes == 4 * 2762
    difference = (loss(theta + 1e-5 * gradient) - loss(theta - 1e-5 * gradient)) / 2e-5
    assert difference == pytest.approx(gradient @ gradient, rel=1e-6)


def test_a_rule_may_diverge():
    task = TeacherTask(0, num_examples=256)
    result = train(task, Rule(1e200), [constant(1.0)] * 4, num_gradients=40)
    assert not np.isfinite(result.theta).all() and result.error > 0.8


def test_no_task_learns_nothing():
    assert train(NoTask(), Rule(), [constant(1.0)], num_gradients=3).error == 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Rule(-1), "learning_rate is expected to be a number >= 0. Received: learning_rate=-1"),
        (lambda: Rule(momentum=1), "momentum is expected to be a number >= 0 and < 1. Received: momentum=1"),
        (lambda: Rule(weighting="linear"), "staleness_weighting is expected to be 'none' or .* Received: staleness_weighting='linear'"),
        (lambda: TeacherTask(num_examples=31), "num_examples is expected to be an integer >= 32. Received: num_examples=31"),
        (lambda: TeacherTask(activation="gelu"), "activation is expected to be 'relu' or 'tanh'. Received: activation='gelu'"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(call, text):
    with pytest.raises(ConfigurationError, match=text):
        call()
