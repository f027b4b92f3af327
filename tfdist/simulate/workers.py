"""How long a worker computes: functions of a `numpy.random.Generator` that return the seconds of its next step.

They nest: `stumbling(slowed(constant(0.1), 5), 0.05, 5)` is a worker that needs half a second, and 2.5 in a twentieth
of its steps.
"""

from tfdist.staleness.checks import expect_number


def constant(seconds):
    """Every step takes `seconds` >= 0."""
    seconds = expect_number("seconds", seconds)
    return lambda random: seconds


def slowed(compute_seconds, factor):
    """A worker that is slow for good: every step takes `factor` > 0 times as long."""
    factor = expect_number("factor", factor, exclusive=True)
    return lambda random: factor * compute_seconds(random)


def stumbling(compute_seconds, fraction, factor):
    """A worker that is slow now and then: a random `fraction` in [0, 1) of its steps takes `factor` > 0 times as long."""
    fraction = expect_number("fraction", fraction, below=1)
    factor = expect_number("factor", factor, exclusive=True)
    return lambda random: (factor if random.random() < fraction else 1.0) * compute_seconds(random)


def varied(compute_seconds, spread):
    """A worker whose steps differ: uniformly by up to a `spread` in [0, 1) of their time, either way."""
    spread = expect_number("spread", spread, below=1)
    return lambda random: (1 + spread * (2 * random.random() - 1)) * compute_seconds(random)
