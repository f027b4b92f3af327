"""Rates from a handful of timed all-reduces."""

import math
from typing import NamedTuple

from tfdist.collectives.choose import predict
from tfdist.collectives.rates import default_rates, from_list, to_list

_REDUCE = 6  # the place of the reduction in `to_list`; it is measured by itself
# How uncertain the defaults are, in units of a probe's noise, as logarithms: each a factor of 7 against 10 %. Those that
# make up the time of a small array are more uncertain together: a slow machine is slow in all of them.
_UNCERTAINTY, _UNCERTAINTY_TOGETHER = 20.0, 60.0
_TOGETHER = ((7, 0, 1), (3, 4))  # start, latency and message inside; latency and message between hosts
_NUM_ITERATIONS = 60
_CONVERGED = 1e-6


class Probe(NamedTuple):
    """A measurement: the median `seconds` of an all-reduce of `num_bytes` bytes by `algorithm`, a name."""

    algorithm: str
    num_bytes: int
    seconds: float


def fit(topology, probes, reduce_seconds_per_byte):
    """Returns the `Rates` that explain the probes best.

    Predictions are sums of rates times counts. The logarithms of the rates are fitted to the logarithms of the times
    (Gauss-Newton), so no rate ends at or below zero and small probes count as much as large ones. Each rate is drawn a
    little to its default, which settles those that the probes say nothing of. To tell latency from the cost of a start, probe
    two algorithms at a small size; for the bytes, large sizes.

    Args:
      topology: the `Topology` that was measured.
      probes: list of `Probe`s, or tuples like them; such as have no finite time > 0 are left out.
      reduce_seconds_per_byte: float > 0, measured without communication.
    """
    start = to_list(default_rates(topology))
    if math.isfinite(reduce_seconds_per_byte) and reduce_seconds_per_byte > 0:
        start[_REDUCE] = reduce_seconds_per_byte
    probes = [Probe(*probe) for probe in probes]
    probes = [probe for probe in probes if math.isfinite(probe.seconds) and probe.seconds > 0]
    counts = [_counts(topology, probe, start) for probe in probes]
    prior, logs = _prior(len(start)), [0.0] * len(start)
    for _ in range(_NUM_ITERATIONS):
        step = _step(logs, prior, counts, probes)
        largest = max(1.0, *map(abs, step))
        logs = [log + change / largest for log, change in zip(logs, step)]
        if max(map(abs, step)) < _CONVERGED:
            break
    return from_list([rate * math.exp(log) for rate, log in zip(start, logs)])


def _counts(topology, probe, start):
    """The seconds that each of the rates `start` contributes to a probe: what it would take if the others were 0."""
    alone = [[rate * (place == other) for other, rate in enumerate(start)] for place in range(len(start))]
    return [predict(probe.algorithm, topology, from_list(rates), probe.num_bytes) for rates in alone]


def _prior(size):
    """The inverse covariance of the logarithms of the rates over their defaults."""
    own, common = _UNCERTAINTY**2, _UNCERTAINTY_TOGETHER**2
    matrix = [[(row == column) / own for column in range(size)] for row in range(size)]
    for group in _TOGETHER:  # the inverse of own I + common 1 1' (Sherman & Morrison)
        for row in group:
            for column in group:
                matrix[row][column] -= common / (own + len(group) * common) / own
    return matrix


def _step(logs, prior, counts, probes):
    """One Gauss-Newton step of sum (log predicted - log measured)^2 + logs' prior logs."""
    size = len(logs)
    matrix = [list(row) for row in prior]
    right = [-sum(value * log for value, log in zip(row, logs)) for row in prior]
    for times, probe in zip(counts, probes):
        parts = [count * math.exp(log) for count, log in zip(times, logs)]
        predicted = sum(parts)
        slopes = [part / predicted for part in parts]
        slopes[_REDUCE] = 0.0
        for row in range(size):
            right[row] += slopes[row] * math.log(probe.seconds / predicted)
            for column in range(size):
                matrix[row][column] += slopes[row] * slopes[column]
    return _solve(matrix, right)


def _solve(matrix, right):
    """Solves a symmetric positive definite system by Gaussian elimination, which then needs no pivoting."""
    rows = [[*row, value] for row, value in zip(matrix, right)]
    for place, pivot in enumerate(rows):
        for row in rows[place + 1 :]:
            factor = row[place] / pivot[place]
            row[:] = [value - factor * above for value, above in zip(row, pivot)]
    solution = [0.0] * len(rows)
    for place in reversed(range(len(rows))):
        known = sum(value * found for value, found in zip(rows[place][place + 1 : -1], solution[place + 1 :]))
        solution[place] = (rows[place][-1] - known) / rows[place][place]
    return solution
