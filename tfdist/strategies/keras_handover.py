"""What a `fit` has built up, and how a worker that joins gets it from the senior member."""

import json
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfdist.errors import MismatchError
from tfdist.strategies import keras_saving

# Callback -> its plain values when its first `fit` began, but for those it was given.
_FIRST = weakref.WeakKeyDictionary()


class HandOver:
    """Weights, optimizer, metrics, history and what the callbacks have counted.

    `give` and `take` are collectives: every member calls the one, and who joins the other.

    Args:
      strategy: an elastic strategy.
      model: the Keras model.
      callbacks: list of Keras callbacks, those of other workers in the same order. Those that only the chief has, or calls,
        begin anew on whoever becomes the chief.
    """

    def __init__(self, strategy, model, callbacks):
        self._strategy, self._model = strategy, model
        self._taken = []  # (variable, value) that this worker was given
        self._callbacks = [callback for callback in callbacks if not isinstance(callback, keras_saving.WhileChief)]

    def begin(self):
        """To be called once the training has begun: what callbacks hold now is their own, as a rank or a path is."""
        for callback in self._callbacks:
            _FIRST.setdefault(callback, _plain_values(callback))

    def give(self, place):
        """Gives the senior member's state away; `place`: where it stands, a dict for JSON that each member makes."""
        self._share({**self._description(), **place})
        self._broadcast(self._variables())

    def take(self):
        """Takes the variables over; returns the senior member's `place`, with what `recall` needs.

        Raises:
          MismatchError: this worker has other variables.
        """
        told = self._share(None)
        variables = self._variables()
        if told["variables"] != _shapes(variables):
            raise MismatchError(
                f"the model, optimizer and metrics of the worker that joins, rank {self._strategy.rank}, were expected to be "
                "those of the others. Received: other variables. Run the same script on every worker."
            )
        self._taken = list(zip(variables, self._broadcast(variables)))
        for variable, value in self._taken:
            variable.assign(value)
        return told

    def recall(self, told):
        """Makes history, callbacks and, where epochs were passed over since, metrics what they were when `told` was given away."""
        metrics = {id(v.value) for v in self._model.metrics_variables}
        for variable, value in self._taken:
            if id(variable) in metrics:  # Keras has reset them where an epoch began
                variable.assign(value)
        history = self._model.history
        history.epoch, history.history = list(told["history"][0]), dict(told["history"][1])
        for callback, (values, monitors) in zip(self._callbacks, told["callbacks"], strict=True):
            if monitors and callback.monitor_op is None:
                callback._set_monitor_op()  # it changes the sign of min_delta, once
            for name in values.keys() & vars(callback).keys():
                _FIRST.get(callback, {}).pop(name, None)
                vars(callback)[name] = values[name]

    def _description(self):
        history = self._model.history
        return {
            "history": [history.epoch, plain(history.history)],
            "callbacks": [[_counted(callback), _monitors(callback)] for callback in self._callbacks],
            "variables": _shapes(self._variables()),
        }

    def _variables(self):
        """Everything that training changes, as `tf.Variable`s, in an order that is the same on all workers."""
        model = self._model
        found = [*model.variables, *(model.optimizer.variables if model.optimizer is not None else ())]
        if not self._strategy.uses_servers:  # where an epoch begins metrics have counted nothing
            found += model.metrics_variables
        unique = {id(v): v.value if isinstance(v, keras.Variable) else v for v in found}
        return [v for v in unique.values() if v.dtype != tf.string]

    def _share(self, value):
        chief = self._strategy.worker_group.chief
        return json.loads(self._strategy.share_bytes(b"" if value is None else json.dumps(value).encode(), chief))

    def _broadcast(self, variables):
        """Returns the senior member's values of `variables`."""
        group = self._strategy.worker_group
        values = [variable.numpy() for variable in variables]
        whole = np.concatenate([np.ravel(value).view(np.uint8) for value in values])
        whole = group.broadcast(whole, root=group.chief, name="state for a worker that joins")
        ends = np.cumsum([value.nbytes for value in values])
        return [
            whole[end - value.nbytes : end].view(value.dtype).reshape(value.shape) for value, end in zip(values, ends)
        ]


def plain(values):
    """Returns the columns of a history, for JSON."""
    return {key: [float(value) for value in column] for key, column in values.items()}


def _shapes(variables):
    return [[list(variable.shape), tf.as_dtype(variable.dtype).name] for variable in variables]


def _counted(callback):
    """What a callback has counted: what has changed since it began."""
    first = _FIRST.get(callback, {})
    values = _plain_values(callback)
    return {name: value for name, value in values.items() if name not in first or first[name] != value}


def _plain_values(callback):
    """Returns the attributes of a callback that JSON can hold."""
    values = {}
    for name, value in vars(callback).items():
        if isinstance(value, (np.generic, np.ndarray, tf.Tensor)) and not value.shape:
            value = np.asarray(value).item()
        if name != "_model" and isinstance(value, (bool, int, float, str)):
            values[name] = value
    return values


def _monitors(callback):
    """Whether a callback of Keras has found out in which direction what it monitors is better."""
    return getattr(callback, "monitor_op", None) is not None
