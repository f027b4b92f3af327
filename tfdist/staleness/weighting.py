"""How much a stale gradient counts: a factor on its step, by its staleness."""

import difflib
import inspect

import numpy as np

from tfdist.staleness.checks import expect, expect_count, expect_number


def none(staleness):
    """Every gradient counts fully: 1."""
    return np.ones_like(staleness)


def inverse(staleness):
    """1 / max(1, tau): a gradient that is tau updates late moves the parameters by a tau-th of a step.

    So m workers, whose gradients are about m - 1 updates late, together go about as far as one worker would have gone.

    Paper: Zhang, Gupta, Lian and Liu, "Staleness-aware async-SGD for distributed deep learning", IJCAI 2016.
    """
    return 1.0 / np.maximum(1.0, staleness)


def exponential(staleness, rate=0.1):
    """exp(-rate tau): forgets very late gradients, as of a straggler, sooner than `inverse` does.

    With many workers every gradient is late and almost nothing is learned: keep rate * (m - 1) small.

    Args:
      rate: float > 0. The default is ours: a gradient 7 updates late counts half.

    Paper: Chan and Lane, "Distributed asynchronous optimization of convolutional neural networks", Interspeech 2014.
    """
    return np.exp(-rate * staleness)


WEIGHTINGS = {"none": none, "inverse": inverse, "exponential": exponential}  # name -> function of a float64 array


def weight(name, staleness, **constants):
    """Returns the factor on the step of one gradient.

    Args:
      name: str, a key of `WEIGHTINGS`.
      staleness: int >= 0, updates applied between the pull and the push.
      **constants: floats > 0 that the weighting takes, such as `rate` of "exponential".

    Returns:
      A float in [0, 1]; 1 for staleness 0.

    Raises:
      ConfigurationError: no such weighting or constant, or a value out of range.
    """
    staleness = expect_count("staleness", staleness)
    return float(_function(name, constants)(np.array([staleness], np.float64), **constants)[0])


def table(name, length, **constants):
    """Returns the factors of staleness 0, 1, ..., length - 1; the native server uses the last one for all beyond.

    Args:
      name: str, a key of `WEIGHTINGS`.
      length: int > 0.
      **constants: as for `weight`.

    Returns:
      A float64 array of shape (length,).

    Raises:
      ConfigurationError: as `weight`.
    """
    length = expect_count("length", length, low=1)
    return _function(name, constants)(np.arange(length, dtype=np.float64), **constants)


def _function(name, constants):
    if name not in list(WEIGHTINGS):
        close = difflib.get_close_matches(str(name), WEIGHTINGS, 1)
        hint = f"Did you mean {close[0]!r}?" if close else "Choose one of them."
        expect(False, "staleness_weighting", " or ".join(map(repr, WEIGHTINGS)), name, hint)
    if constants:
        _check_constants(name, constants)
    return WEIGHTINGS[name]


def _check_constants(name, constants):
    takes = list(inspect.signature(WEIGHTINGS[name]).parameters)[1:]
    known = f"{' or '.join(takes) or 'no constant'} of {name!r}"
    for constant, value in constants.items():
        expect(constant in takes, constant, known, value, "Leave it out.")
        expect_number(constant, value, exclusive=True)
