import math

import numpy as np
import pytest

from tfdist.errors import ConfigurationError
from tfdist.staleness import WEIGHTINGS, table, weight

FORMULAS = {
    "none": lambda staleness: 1.0,
    "inverse": lambda staleness: 1.0 / staleness if staleness else 1.0,
    "exponential": lambda staleness: math.exp(-0.1 * staleness),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_follow_the_formula(name):
    expected = [FORMULAS[name](staleness) for staleness in range(50)]
    assert [weight(name, staleness) for staleness in range(50)] == pytest.approx(expected)
    assert table(name, 50) == pytest.approx(expected)
    assert table(name, 50).dtype == np.float64 and table(name, 1).shape == (1,)


def test_a_fresh_gradient_counts_fully_and_a_staler_one_never_more():
    for name in WEIGHTINGS:
        weights = table(name, 100)
        assert weights[0] == 1 and np.all(np.diff(weights) <= 0) and np.all(weights > 0)


def test_the_rate_is_an_argument():
    assert weight("exponential", 3, rate=0.5) == pytest.approx(math.exp(-1.5))
    assert table("exponential", 4, rate=0.5)[3] == pytest.approx(math.exp(-1.5))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: weight("inverted", 1), "'none' or 'inverse' or 'exponential'. Received: staleness_weighting='inverted'. Did you mean 'inverse'"),
        (lambda: weight("half", 1), "Received: staleness_weighting='half'. Choose one of them."),
        (lambda: weight(["none"], 1), r"Received: staleness_weighting=\['none'\]"),
        (lambda: weight("inverse", -1), "staleness is expected to be an integer >= 0. Received: staleness=-1"),
        (lambda: weight("inverse", 0.5), "Received: staleness=0.5"),
        (lambda: table("inverse", 0), "length is expected to be an integer >= 1. Received: length=0"),
        (lambda: weight("inverse", 1, rate=1), "rate is expected to be no constant of 'inverse'. Received: rate=1. Leave it out."),
        (lambda: weight("exponential", 1, beta=1), "beta is expected to be rate of 'exponential'. Received: beta=1"),
        (lambda: weight("exponential", 1, rate=0), "rate is expected to be a number > 0. Received: rate=0."),
        (lambda: weight("exponential", 1, rate=math.nan), "Received: rate=nan"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(call, text):
    with pytest.raises(ConfigurationError, match=text):
        call()
