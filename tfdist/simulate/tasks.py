"""What the simulated workers learn: thousands of steps a second, but not so easy that every rule learns it."""

import abc

import numpy as np

from tfdist.staleness.checks import expect, expect_count

_STUDENT, _TEACHER = (32, 64, 10), (32, 16, 10)  # inputs, hidden units, classes
_ACTIVATIONS = {  # name -> function, derivative by the function's value
    "relu": (lambda values: np.maximum(0, values), lambda hidden: hidden > 0),
    "tanh": (np.tanh, lambda hidden: 1 - hidden * hidden),
}


class AbstractTask(abc.ABC):
    """Parameters as one flat array, and a stream of batches that whoever is free takes the next of.

    Attributes:
      num_bytes: int, of the parameters, and of a gradient, on the network.
    """

    num_bytes: int

    @abc.abstractmethod
    def initial(self):
        """Returns new initial parameters, a float array; always the same."""

    @abc.abstractmethod
    def gradient(self, theta, batch):
        """Returns the gradient at `theta` on batch number `batch` = 0, 1, ...: an array of theta's shape and dtype."""

    @abc.abstractmethod
    def error(self, theta):
        """Returns a float: what is wrong with `theta`, on data that is not trained on."""


class NoTask(AbstractTask):
    """Nothing to learn: for questions of speed only.

    Args:
      num_bytes: int >= 0.
    """

    def __init__(self, num_bytes=0):
        self.num_bytes = num_bytes

    def initial(self):
        """See `AbstractTask`."""
        return np.zeros(0)

    def gradient(self, theta, batch):
        """See `AbstractTask`."""
        return theta

    def error(self, theta):
        """See `AbstractTask`."""
        return 0.0


class TeacherTask(AbstractTask):
    """A classifier of normal random vectors learns the labels that another, fixed network gives them.

    Both are perceptrons with one hidden layer; the student, 32-64-10, has 2,762 parameters and learns by softmax
    cross-entropy. With "relu" late gradients do more harm than with "tanh", which is bounded. The error is the
    fraction of test examples classified otherwise than by the teacher.

    Args:
      seed: int, of everything.
      num_examples: int, to train on; an epoch is num_examples // batch_size batches, each epoch in another order.
      num_test_examples: int.
      batch_size: int.
      activation: str, "relu" or "tanh".

    Raises:
      ConfigurationError: fewer examples than a batch, or another activation.
    """

    def __init__(self, seed=0, *, num_examples=10000, num_test_examples=2000, batch_size=32, activation="relu"):
        expect_count("num_examples", num_examples, low=batch_size)
        expect(activation in _ACTIVATIONS, "activation", " or ".join(map(repr, _ACTIVATIONS)), activation)
        self._seed, self._batch_size = seed, batch_size
        self._function, self._derivative = _ACTIVATIONS[activation]
        random = np.random.default_rng(seed)
        self._initial = _perceptron(random, _STUDENT)
        teacher = _split(_perceptron(random, _TEACHER), _TEACHER)
        inputs = random.standard_normal((num_examples + num_test_examples, _STUDENT[0]))
        labels = self._forward(teacher, inputs)[1].argmax(axis=1)
        self._train = inputs[:num_examples], labels[:num_examples]
        self._test = inputs[num_examples:], labels[num_examples:]
        self._order = -1, None  # epoch, permutation
        self.num_bytes = 4 * self._initial.size

    def initial(self):
        """See `AbstractTask`."""
        return self._initial.copy()

    def gradient(self, theta, batch):
        """See `AbstractTask`."""
        inputs, labels = (part[self._rows(batch)] for part in self._train)
        weights = _split(theta, _STUDENT)
        hidden, logits = self._forward(weights, inputs)
        d_logits = np.exp(logits - logits.max(axis=1, keepdims=True))
        d_logits /= d_logits.sum(axis=1, keepdims=True)
        d_logits[np.arange(len(labels)), labels] -= 1
        d_logits /= len(labels)
        d_hidden = (d_logits @ weights[2].T) * self._derivative(hidden)
        parts = (inputs.T @ d_hidden, d_hidden.sum(axis=0), hidden.T @ d_logits, d_logits.sum(axis=0))
        return np.concatenate([part.ravel() for part in parts])

    def error(self, theta):
        """See `AbstractTask`."""
        inputs, labels = self._test
        return float(np.mean(self._forward(_split(theta, _STUDENT), inputs)[1].argmax(axis=1) != labels))

    def _forward(self, weights, inputs):
        first, first_bias, second, second_bias = weights
        hidden = self._function(inputs @ first + first_bias)
        return hidden, hidden @ second + second_bias

    def _rows(self, batch):
        num_batches = len(self._train[1]) // self._batch_size
        epoch, index = divmod(batch, num_batches)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(len(self._train[1]))
        return self._order[1][index * self._batch_size : (index + 1) * self._batch_size]


def _perceptron(random, sizes):
    """Returns flat parameters: normal weights of variance 1 / inputs, biases zero."""
    inputs, hidden, outputs = sizes
    first = random.standard_normal(inputs * hidden) / np.sqrt(inputs)
    second = random.standard_normal(hidden * outputs) / np.sqrt(hidden)
    return np.concatenate([first, np.zeros(hidden), second, np.zeros(outputs)])


def _split(theta, sizes):
    """Returns views: weights and biases of both layers."""
    inputs, hidden, outputs = sizes
    ends = np.cumsum([inputs * hidden, hidden, hidden * outputs])
    first, first_bias, second, second_bias = np.split(theta, ends)
    return first.reshape(inputs, hidden), first_bias, second.reshape(hidden, outputs), second_bias
