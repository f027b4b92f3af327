"""The update rules in NumPy, one short function each: what the native ones are tested with and what simulations run on.

Symbols: x parameters, g gradient, lr learning rate, t = 1, 2, ... the number of this update, s the slots (in Keras's
order), h the hyperparameters. All is done in place. The order of operations is Keras's; constants are computed in float64,
so that float32 agrees only to some ulp of 1 - beta**t.
"""

import dataclasses
import math

import numpy as np

from tfdist.errors import ConfigurationError


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A gradient with what Keras makes of it: where rows occur several times, `squares` is not the square of `total`.

    All are arrays of the parameters' shape: the sum of the contributions, of their squares, of their absolute values.
    """

    total: np.ndarray
    squares: np.ndarray
    magnitudes: np.ndarray


def dense(gradient):
    """Returns the `Gradient` of an array of the parameters' shape."""
    return Gradient(gradient, np.square(gradient), np.abs(gradient))


def of_rows(rows, values, shape):
    """Returns the `Gradient` of whole rows: zeros elsewhere; repeated rows sum up, their squares and magnitudes too."""

    def scatter(contributions):
        sums = np.zeros(shape, values.dtype)
        np.add.at(sums, rows, contributions)
        return sums

    return Gradient(scatter(values), scatter(np.square(values)), scatter(np.abs(values)))


def cast(value):
    """Returns a hyperparameter as Keras's `ops.cast` hands it on: rounded to float32, whatever the variable's dtype."""
    return float(np.float32(value))


def add(x, s, g, lr, t, h):
    """x += g: for sums, and for updates that were computed elsewhere."""
    x += g.total


def sgd(x, s, g, lr, t, h, nesterov=False):
    """Stochastic gradient descent; with momentum as in Sutskever et al. 2013, equations 1-4."""
    if not h["momentum"]:
        x -= g.total * lr
        return
    (m,), momentum = s, cast(h["momentum"])
    m[...] = m * momentum - g.total * lr
    x += m * momentum - g.total * lr if nesterov else m


def adam(x, s, g, lr, t, h, amsgrad=False):
    """Adam (Kingma and Ba 2015, end of section 2); AMSGrad (Reddi et al. 2018, algorithm 2, with bias correction).

    AdamW (Loshchilov and Hutter 2019) is Adam with weight decay.
    """
    m, v = s[:2]
    m += (g.total - m) * (1 - h["beta_1"])
    v += (g.squares - v) * (1 - h["beta_2"])
    if amsgrad:
        v = np.maximum(s[2], v, out=s[2])
    step_size = lr * math.sqrt(1 - cast(h["beta_2"]) ** t) / (1 - cast(h["beta_1"]) ** t)
    x -= m * step_size / (np.sqrt(v) + h["epsilon"])


def adagrad(x, s, g, lr, t, h):
    """Adagrad (Duchi et al. 2011, diagonal form), with epsilon under the root."""
    (accumulator,) = s
    accumulator += g.squares
    x -= lr * g.total / np.sqrt(accumulator + h["epsilon"])


def rmsprop(x, s, g, lr, t, h, centered=False):
    """RMSprop (Hinton 2012, lecture 6e); centered and with momentum as in Graves 2013, equations 38-41, but plain g."""
    v, rest = s[0], list(s[1:])
    m = rest.pop(0) if h["momentum"] > 0 else None
    v[...] = h["rho"] * v + (1 - h["rho"]) * g.squares
    variance = v
    if centered:
        (mean,) = rest
        mean[...] = h["rho"] * mean + (1 - h["rho"]) * g.total
        variance = v - np.square(mean)
    increment = lr * g.total / np.sqrt(variance + h["epsilon"])
    if m is not None:
        m[...] = h["momentum"] * m + increment
        increment = m
    x -= increment


def adadelta(x, s, g, lr, t, h):
    """Adadelta (Zeiler 2012, algorithm 1), with a learning rate. A repeated row's own deltas are squared, then summed."""
    v, d = s
    v[...] = h["rho"] * v + (1 - h["rho"]) * g.squares
    ratio = np.sqrt(d + h["epsilon"]) / np.sqrt(v + h["epsilon"])
    d[...] = h["rho"] * d + (1 - h["rho"]) * np.square(ratio) * g.squares
    x -= lr * (ratio * g.total)


def adamax(x, s, g, lr, t, h):
    """Adamax (Kingma and Ba 2015, algorithm 2)."""
    m, u = s
    m += (g.total - m) * (1 - h["beta_1"])
    u[...] = np.maximum(h["beta_2"] * u, g.magnitudes)
    x -= lr * m / ((1 - cast(h["beta_1"]) ** t) * (u + h["epsilon"]))


def nadam(x, s, g, lr, t, h):
    """Nadam (Dozat 2016, algorithm 2): u(t) is his mu_t, and the product over all steps follows from t."""
    m, v = s
    beta_1, beta_2, steps = cast(h["beta_1"]), cast(h["beta_2"]), np.arange(1.0, t + 1)
    product = float(np.prod(h["beta_1"] * (1 - 0.5 * 0.96**steps)))
    u, next_u = (beta_1 * (1 - 0.5 * cast(0.96) ** step) for step in (t, t + 1))
    m += (g.total - m) * (1 - beta_1)
    v += (g.squares - v) * (1 - beta_2)
    m_hat = next_u * m / (1 - product * next_u) + (1 - u) * g.total / (1 - product)
    v_hat = v / (1 - beta_2**t)
    x -= m_hat * lr / (np.sqrt(v_hat) + h["epsilon"])


def ftrl(x, s, g, lr, t, h):
    """FTRL-Proximal (McMahan et al. 2013, algorithm 1), with shrinkage.

    Parameters follow from the slots alone: those whose gradients were always 0 become 0 with the first update.
    """
    accumulator, linear = s
    power, l1 = -h["learning_rate_power"], h["l1_regularization_strength"]
    after = accumulator + g.squares
    shrinkage = 2 * h["l2_shrinkage_regularization_strength"] * x
    linear += g.total + shrinkage - (after**power - accumulator**power) / lr * x
    l2 = h["l2_regularization_strength"] + h["beta"] / (2 * lr)
    x[...] = (np.clip(linear, -l1, l1) - linear) / (after**power / lr + 2 * l2)
    accumulator[...] = after


def lion(x, s, g, lr, t, h):
    """Lion (Chen et al. 2023, algorithm 2)."""
    (m,), beta_1, beta_2 = s, cast(h["beta_1"]), cast(h["beta_2"])
    x -= lr * np.sign(m * beta_1 + g.total * (1 - beta_1))
    m[...] = m * beta_2 + g.total * (1 - beta_2)


RULES = {
    "add": add,
    "sgd": sgd,
    "adam": adam,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adadelta": adadelta,
    "adamax": adamax,
    "nadam": nadam,
    "ftrl": ftrl,
    "lion": lion,
}


def make_slots(rule, like):
    """Returns new slots for parameters `like` these, at Keras's initial values."""
    initial = cast(rule.hyperparameters.get("initial_accumulator_value", 0.0))
    return [np.full_like(like, 0.0 if slot else initial) for slot in range(len(rule.slot_names))]


def apply(rule, theta, slots, gradient, *, learning_rate, t, weight_decay=0.0):
    """Updates `theta` and `slots` in place with one gradient.

    Args:
      rule: a `rules.Rule`.
      theta: parameters, a float array.
      slots: arrays like it, from `make_slots`.
      gradient: an array like it, or a `Gradient`.
      learning_rate: of this update.
      t: which update this is, from 1.
      weight_decay: theta -= theta * weight_decay * learning_rate comes first.

    Raises:
      ConfigurationError: t < 1.
    """
    if t < 1:
        raise ConfigurationError(f"Updates are counted from t=1. Received: t={t}. Give the number of this update.")
    if not isinstance(gradient, Gradient):
        gradient = dense(gradient)
    if weight_decay:
        theta -= theta * cast(weight_decay) * learning_rate
    flags = dict.fromkeys(rule.flags, True)
    RULES[rule.kind](theta, slots, gradient, learning_rate, t, rule.hyperparameters, **flags)


def apply_rows(rule, theta, slots, rows, values, *, learning_rate, t, weight_decay=0.0, is_lazy=False):
    """Updates with a gradient of whole rows, `values[i]` that of row `rows[i]`; an index may occur several times.

    Not lazy, every row moves as in Keras: those without a gradient with the gradient 0. Lazy, rows with equal index are
    summed, and only they and their slots move. The other arguments are those of `apply`.
    """
    settings = {"learning_rate": learning_rate, "t": t, "weight_decay": weight_decay}
    gradient = of_rows(rows, values, theta.shape)
    if not is_lazy:
        return apply(rule, theta, slots, gradient, **settings)
    touched = np.unique(rows)
    arrays = [array[touched] for array in (theta, *slots)]
    apply(rule, arrays[0], arrays[1:], gradient.total[touched], **settings)
    for array, updated in zip((theta, *slots), arrays):
        array[touched] = updated
