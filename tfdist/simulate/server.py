"""The parameter server of the simulator: one NumPy array, plain or momentum SGD, and the staleness rules."""

import collections
import dataclasses

import numpy as np

from tfdist.staleness import Asynchronous, DelayCompensation, Verdict, weight
from tfdist.staleness.checks import expect_number
from tfdist.staleness.waiting import AbstractWaiting


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the server turns gradients into updates: theta <- theta + v, v <- momentum v - learning_rate weight g.

    Args:
      learning_rate: float >= 0.
      momentum: float in [0, 1).
      waiting: an `AbstractWaiting`.
      weighting: str, a key of `tfdist.staleness.WEIGHTINGS`.
      compensation: a `DelayCompensation`, or None.

    Raises:
      ConfigurationError: a value out of range.
    """

    learning_rate: float = 0.1
    momentum: float = 0.0
    waiting: AbstractWaiting = dataclasses.field(default_factory=Asynchronous)
    weighting: str = "none"
    compensation: DelayCompensation | None = None

    def __post_init__(self):
        expect_number("learning_rate", self.learning_rate)
        expect_number("momentum", self.momentum, below=1)
        weight(self.weighting, 0)


class Server:
    """Parameters that workers pull and push gradients to.

    Args:
      theta: float array, the initial parameters; changed in place.
      rule: a `Rule`.
      num_workers: int > 0.

    Attributes:
      num_updates: int, the version of the parameters.
      num_gradients: int, how many gradients the updates are made of.
      num_dropped: int, how many came too late.
      staleness: Counter, how many gradients of each staleness became an update.
    """

    def __init__(self, theta, rule, num_workers):
        self.theta, self._rule = theta, rule
        self.num_updates = self.num_gradients = self.num_dropped = 0
        self.staleness = collections.Counter()
        self._velocity = np.zeros_like(theta)
        self._mean_square = np.zeros_like(theta)
        self._pulled = {}  # worker -> (version, parameters)
        self._collected = []
        rule.waiting.begin(num_workers)

    def may_start(self, worker):
        """Returns whether the worker may pull now."""
        return self._rule.waiting.may_start(worker)

    def pull(self, worker):
        """Returns a copy of the parameters."""
        self._rule.waiting.start(worker)
        self._pulled[worker] = self.num_updates, self.theta.copy()
        return self._pulled[worker][1]

    def push(self, worker, gradient):
        """Takes the gradient at the parameters that the worker pulled last; returns the `Verdict`."""
        verdict = self._rule.waiting.push(worker)
        if verdict is Verdict.DROP:
            self.num_dropped += 1
        elif verdict is Verdict.APPLY:
            self._update([self._corrected(worker, gradient)])
        else:
            self._collected.append(self._corrected(worker, gradient))
            if verdict is Verdict.COMPLETE:
                self._update(self._collected)
                self._collected = []
        return verdict

    def _corrected(self, worker, gradient):
        version, theta_then = self._pulled[worker]
        staleness = self.num_updates - version
        self.staleness[staleness] += 1
        if self._rule.compensation is not None:
            gradient = self._rule.compensation.apply(gradient, self.theta, theta_then, self._mean_square)
        return weight(self._rule.weighting, staleness) * gradient

    def _update(self, gradients):
        mean = gradients[0] if len(gradients) == 1 else sum(gradients) / len(gradients)
        self._velocity *= self._rule.momentum
        self._velocity -= self._rule.learning_rate * mean
        self.theta += self._velocity
        self.num_updates += 1
        self.num_gradients += len(gradients)
