"""Corrects a late gradient for the way the parameters have gone since it was computed."""

import numpy as np

from tfdist.staleness.checks import expect, expect_number

KINDS = ("constant", "adaptive")
_EPSILON = 1e-7


class DelayCompensation:
    """A late gradient, moved to where the parameters are now by the first term of its Taylor series.

    The Hessian is approximated by the element-wise square of the gradient:

        g + lambda g * g * (theta - theta_then)                                             (equation 10)
        constant (DC-ASGD-c):  lambda = lambda0
        adaptive (DC-ASGD-a):  mean_square <- m mean_square + (1 - m) g * g
                               lambda = lambda0 / sqrt(mean_square + 1e-7)                  (their experiments)

    Choose it where gradients are late but the learning rate is too good to be lowered; `weighting` is simpler and
    stands longer delays. Costs a copy of the parameters per worker on the server (theta_then), for "adaptive" one array
    more, and about 4 passes over the gradient.

    Args:
      lambda0: float >= 0; 0 leaves gradients as they are. The paper's: 0.04 constant, 2 adaptive.
      kind: "constant" or "adaptive".
      m: float in [0, 1), how slowly the mean square forgets. The paper's: 0.95 (CIFAR-10), 0 (ImageNet).

    Raises:
      ConfigurationError: a value out of range.

    Paper: Zheng et al., "Asynchronous stochastic gradient descent with delay compensation", ICML 2017. We apply it to
    the gradient of any optimizer, not of plain SGD only.
    """

    def __init__(self, lambda0, kind="adaptive", *, m=0.95):
        self.lambda0 = expect_number("delay_compensation", lambda0)
        expect(kind in KINDS, "kind", " or ".join(map(repr, KINDS)), kind)
        self.kind, self.m = kind, expect_number("m", m, below=1)

    @property
    def needs_mean_square(self):
        """Whether `apply` wants an array as large as the parameters, at first zeros."""
        return self.kind == "adaptive"

    def apply(self, gradient, theta, theta_then, mean_square=None):
        """Returns the compensated gradient.

        Args:
          gradient: float array, computed at `theta_then`.
          theta: array of the same shape and dtype: the parameters now.
          theta_then: likewise, what the worker had pulled.
          mean_square: likewise; for "adaptive" only. Updated in place.

        Returns:
          A new array of the same shape and dtype.
        """
        square = gradient * gradient
        strength = self.lambda0
        if self.needs_mean_square:
            mean_square *= self.m
            mean_square += (1 - self.m) * square
            strength = self.lambda0 / np.sqrt(mean_square + np.asarray(_EPSILON, mean_square.dtype))
        return gradient + strength * square * (theta - theta_then)
