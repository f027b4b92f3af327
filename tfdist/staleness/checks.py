"""The refusals of this package, in the house's words."""

import math
import numbers

from tfdist.errors import ConfigurationError


def expect(good, name, expected, value, advice="Choose another."):
    """Raises ConfigurationError unless `good`."""
    if not good:
        raise ConfigurationError(f"{name} is expected to be {expected}. Received: {name}={value!r}. {advice}")


def expect_count(name, value, low=0):
    """Returns an integer of at least `low` as an int; raises ConfigurationError for anything else."""
    expect(isinstance(value, numbers.Integral) and value >= low, name, f"an integer >= {low}", value)
    return int(value)


def expect_number(name, value, *, low=0.0, below=math.inf, exclusive=False):
    """Returns a number in [low, below), or in (low, below) if `exclusive`, as a float; raises ConfigurationError."""
    good = isinstance(value, numbers.Real) and low <= value < below and not (exclusive and value == low)
    upper = "" if math.isinf(below) else f" and < {below:g}"
    expect(good, name, f"a number {'>' if exclusive else '>='} {low:g}{upper}", value)
    return float(value)
