import numpy as np
import pytest

from tfdist.errors import ConfigurationError
from tfdist.staleness import DelayCompensation

GRADIENT = np.array([1.0, -2.0, 0.0, 0.5])
THETA = np.array([0.3, 0.1, -0.2, 1.0])
THEN = np.array([0.1, 0.4, 0.2, 1.0])


def test_constant_is_equation_10():
    expected = [1 + 0.5 * 1 * 0.2, -2 + 0.5 * 4 * -0.3, 0.0, 0.5]
    assert DelayCompensation(0.5, "constant").apply(GRADIENT, THETA, THEN) == pytest.approx(expected)


def test_adaptive_divides_by_the_root_of_the_mean_square():
    compensation, mean_square = DelayCompensation(2.0), np.zeros(4)
    expected_square = np.zeros(4)
    for scale in (1.0, 3.0, 0.2):
        gradient = scale * GRADIENT
        expected_square = 0.95 * expected_square + 0.05 * gradient**2
        expected = gradient + 2.0 / np.sqrt(expected_square + 1e-7) * gradient**2 * (THETA - THEN)
        assert compensation.apply(gradient, THETA, THEN, mean_square) == pytest.approx(expected)
        assert mean_square == pytest.approx(expected_square)


@pytest.mark.parametrize("kind", ["constant", "adaptive"])
def test_a_fresh_gradient_and_lambda_0_change_nothing(kind):
    assert np.array_equal(DelayCompensation(2.0, kind).apply(GRADIENT, THETA, THETA, np.zeros(4)), GRADIENT)
    assert np.array_equal(DelayCompensation(0, kind).apply(GRADIENT, THETA, THEN, np.zeros(4)), GRADIENT)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["constant", "adaptive"])
def test_arguments_are_left_alone_and_dtypes_kept(kind, dtype):
    arrays = [array.astype(dtype) for array in (GRADIENT, THETA, THEN)]
    before = [array.copy() for array in arrays]
    mean_square = np.zeros(4, dtype)
    result = DelayCompensation(2.0, kind).apply(*arrays, mean_square)
    assert result.dtype == mean_square.dtype == dtype and result is not arrays[0]
    assert all(np.array_equal(array, copy) for array, copy in zip(arrays, before))


def test_it_finds_the_gradient_of_a_loss_whose_hessian_is_the_squared_gradient():
    """-log(theta) has the gradient -1/theta and the second derivative 1/theta^2: what is left is the second order."""
    then, now = np.array([1.0]), np.array([1.01])
    compensated = DelayCompensation(1.0, "constant").apply(-1 / then, now, then)
    assert abs(compensated + 1 / now) < 1.1e-4 and abs(1 / then - 1 / now) > 90e-4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"lambda0": -1}, "delay_compensation is expected to be a number >= 0. Received: delay_compensation=-1"),
        ({"lambda0": float("nan")}, "Received: delay_compensation=nan"),
        ({"lambda0": "2"}, "Received: delay_compensation='2'"),
        ({"lambda0": 2, "kind": "c"}, "kind is expected to be 'constant' or 'adaptive'. Received: kind='c'"),
        ({"lambda0": 2, "m": 1}, "m is expected to be a number >= 0 and < 1. Received: m=1"),
    ],
)
def test_mistakes_are_refused(arguments, text):
    with pytest.raises(ConfigurationError, match=text):
        DelayCompensation(**arguments)
