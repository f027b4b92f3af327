"""The ratio of two peers, from the rounds in which both were measured one after the other."""

import math
import statistics

_CONFIDENCE = 0.95


def median_ratio(numerators, denominators):
    """Returns the median of the rounds' ratios, and the bound below which the true median lies with 95 % confidence.

    The bound is an order statistic, without an assumption about the distribution: the j-th smallest of n ratios, with the
    smallest j for which P(Binomial(n, 1/2) < j) >= 0.95. Up to four rounds there is none: infinity.

    Args:
      numerators: list of float, seconds by round.
      denominators: list of float > 0, of the same rounds.

    Returns:
      `(median, bound)`.
    """
    ratios = sorted(over / under for over, under in zip(numerators, denominators))
    below = 0.0
    for index, bound in enumerate(ratios):
        below += math.comb(len(ratios), index) / 2 ** len(ratios)
        if below >= _CONFIDENCE:
            return statistics.median(ratios), bound
    return statistics.median(ratios), math.inf
