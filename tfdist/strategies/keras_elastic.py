"""A worker that joins a `fit` that is going on, and those who take it in.

Between two training steps all members ask whether somebody waits (`before_step`). If so they connect with it and the
senior member hands it everything that `fit` has built up: weights, optimizer, metrics, the place in the data, the
history, what the callbacks have counted. The joiner runs the same script: earlier calls of `fit` return what they returned to the others, and
in the present one it takes a step by itself, so that everything is made and traced, before it asks to join; then it
passes over the batches and epochs that are done.
"""

import contextlib
import json
import threading

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfdist.cluster.store.client import StoreTimeoutError
from tfdist.elastic.membership import OVER
from tfdist.errors import MismatchError

POSITION, HISTORY = "elastic/position", "elastic/history/"


class Incomplete(Exception):
    """Rows are missing from an evaluation or prediction: a worker was lost with them. All members see it at one place."""


class FitIsOver(Exception):
    """The others have finished the `fit` in which this worker waited."""


class Fit:
    """One call of `fit` of an elastic strategy, on this worker.

    Args:
      strategy: the strategy.
      model: the Keras model.
      callbacks: list of Keras callbacks, in an order that is the same on all workers.
    """

    def __init__(self, strategy, model, callbacks):
        self._strategy, self._model = strategy, model
        self._callbacks = [_inner(callback) for callback in callbacks]
        self._callbacks = [c for c in self._callbacks if not isinstance(c, keras.callbacks.ProgbarLogger)]
        self._elastic = strategy.elastic
        self.epoch = 0  # Keras's
        self.logs = {}  # of the latest step
        self._part = None
        self._passes_until = None  # what the others told of the place where they are

    def begin_epoch(self, epoch):
        """To be called by the first of the callbacks."""
        self.epoch = epoch
        if self._strategy.is_chief:
            with self._elastic.membership.store() as store:
                store.set(POSITION, json.dumps([self._strategy.num_fit_calls, epoch]).encode())

    def missed_rows(self):
        """Returns the rows that lost workers should have seen and others are to see yet, a list of int."""
        return self._part.state()["missed"] if self._part is not None else []

    @property
    def is_passing(self):
        """Whether what is done now was done by the others before this worker came."""
        return self._passes_until is not None

    def before_step(self, part):
        """Lets in who waits. All members call it between the same two steps.

        Returns:
          Whether this step is to be passed over.
        """
        self._part = part
        if self._elastic.is_joining:
            return False
        if self.is_passing:
            return self._pass_over(part)
        if not part.can_divide:
            return False
        joined = self._elastic.membership.admit(self._strategy.num_fit_calls)
        if joined:
            logging.info("tfdist: rank %s joins in epoch %d", ", ".join(map(str, joined)), self.epoch + 1)
            self._hand_over(part)
        return False

    def after_step(self, part, logs):
        """A joiner has traced the step by taking one alone: now it joins.

        Returns:
          Whether it has done so, and is to take this step once more.

        Raises:
          FitIsOver: the others are past this `fit`.
        """
        self.logs = logs
        if not self._elastic.is_joining:
            return False
        self._elastic.membership.join(self._strategy.num_fit_calls, self._raise_if_over)
        self._passes_until = self._take_over(part)
        self._elastic.is_passing = True
        part.batch = 0
        return True

    def _raise_if_over(self, store):
        number, _ = json.loads(store.try_get(POSITION) or b"[0, 0]")
        if number > self._strategy.num_fit_calls or store.try_get(f"{HISTORY}{self._strategy.num_fit_calls}"):
            raise FitIsOver

    def _pass_over(self, part):
        meta = self._passes_until
        if (self.epoch, part.batch) < (meta["epoch"], meta["part"]["batch"]):
            part.batch += self._model.steps_per_execution
            return True
        part.go_to(meta["part"])
        self._passes_until, self._elastic.is_passing = None, False
        history = self._model.history
        history.epoch, history.history = list(meta["history"][0]), dict(meta["history"][1])
        for callback, values in zip(self._callbacks, meta["callbacks"]):
            vars(callback).update({name: value for name, value in values.items() if name in vars(callback)})
        return False

    def _hand_over(self, part):
        self._share(self._meta(part) if self._strategy.is_chief else None)
        self._broadcast(self._variables())

    def _take_over(self, part):
        meta = self._share(None)
        variables = self._variables()
        described = [[list(variable.shape), tf.as_dtype(variable.dtype).name] for variable in variables]
        if meta["variables"] != described:
            raise MismatchError(
                f"the model, optimizer and metrics of the worker that joins, rank {self._strategy.rank}, were expected to be "
                "those of the others. Received: other variables. Run the same script on every worker."
            )
        for variable, value in zip(variables, self._broadcast(variables)):
            variable.assign(value)
        return meta

    def _variables(self):
        """Everything that training changes, as `tf.Variable`s, in an order that is the same on all workers."""
        model = self._model
        found = [*model.variables, *(model.optimizer.variables if model.optimizer is not None else ()),
                 *model.metrics_variables]  # fmt: skip
        unique = {id(v): v.value if isinstance(v, keras.Variable) else v for v in found}
        return [v for v in unique.values() if v.dtype != tf.string]

    def _meta(self, part):
        history = self._model.history
        return {
            "epoch": self.epoch,
            "part": part.state(),
            "history": [history.epoch, _plain(history.history)],
            "callbacks": [_plain_values(callback) for callback in self._callbacks],
            "variables": [[list(v.shape), tf.as_dtype(v.dtype).name] for v in self._variables()],
        }

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

    def test_logs(self, model):
        """Returns logs of a validation that is passed over."""
        return {name: tf.constant(0.0) for name in ("loss", *model.metrics_names[1:])}


_LOCAL = threading.local()


def current_fit():
    """Returns the `Fit` that is going on in this thread, or None."""
    return getattr(_LOCAL, "fit", None)


@contextlib.contextmanager
def fitting(fit):
    """Makes `fit` the current one."""
    outer, _LOCAL.fit = current_fit(), fit
    try:
        yield
    finally:
        _LOCAL.fit = outer


def check_complete(part):
    """Raises Incomplete where rows of the last batch are missing."""
    if part.is_without(part.generation):
        raise Incomplete


def completed(strategy, body):
    """Returns `body()`, called again when a worker is lost with its rows; all members do so alike."""
    for _ in range(strategy.world_size):
        try:
            return body()
        except Incomplete:
            logging.info("tfdist: a worker was lost: evaluating again without it")
    return body()


def add_progress_bar(strategy, call, verbose):
    """Prepares the progress bar of a worker that may become the chief."""
    from tfdist.strategies import keras_saving

    bar = keras_saving.WhileChief(strategy, keras.callbacks.ProgbarLogger(), verbose=verbose)
    call["callbacks"] = [bar, *call["callbacks"]]


class Progress(keras.callbacks.Callback):
    """Tells a `Fit` of the epochs; comes before all other callbacks."""

    def __init__(self, fit):
        super().__init__()
        self._fit = fit

    def on_epoch_begin(self, epoch, logs=None):
        self._fit.begin_epoch(epoch)


def finished_history(strategy):
    """Returns the (epochs, history) of the `fit` at hand where a joiner comes after its end, else None; and where to begin.

    Returns:
      `(history or None, first epoch)`.
    """
    if strategy.elastic is None or not strategy.elastic.is_joining:
        return None, 0
    with strategy.elastic.membership.store() as store:
        told = store.try_get(f"{HISTORY}{strategy.num_fit_calls}")
        if told is not None:
            return json.loads(told), 0
        number, epoch = json.loads(store.try_get(POSITION) or b"[0, 0]")
        return None, epoch if number == strategy.num_fit_calls else 0


def keep_history(strategy, history):
    """Keeps what a `fit` returns for workers that come later."""
    if strategy.elastic is not None and strategy.is_chief:
        with strategy.elastic.membership.store() as store:
            store.set(
                f"{HISTORY}{strategy.num_fit_calls}", json.dumps([history.epoch, _plain(history.history)]).encode()
            )


def await_history(strategy):
    """Returns the (epochs, history) of a `fit` that the others have finished, or are about to."""
    with strategy.elastic.membership.store() as store:
        while True:
            try:
                return json.loads(store.get(f"{HISTORY}{strategy.num_fit_calls}", timeout=1.0))
            except StoreTimeoutError:
                if store.try_get(OVER) is not None:
                    return [[], {}]


def made_history(model, told):
    """Returns a Keras `History` of what was told."""
    history = keras.callbacks.History()
    history.set_model(model)
    history.epoch, history.history = list(told[0]), dict(told[1])
    model.history = history
    return history


def _plain(values):
    return {key: np.asarray(column).tolist() for key, column in values.items()}


def _inner(callback):
    """The callback itself, where it is one that acts on the chief only."""
    from tfdist.strategies import keras_saving

    return callback.callback if isinstance(callback, keras_saving.WhileChief) else callback


def _plain_values(callback):
    """What a callback has counted: its attributes that JSON can hold."""
    values = {}
    for name, value in vars(callback).items():
        if isinstance(value, np.generic):
            value = value.item()
        if name != "_model" and isinstance(value, (bool, int, float, str)):
            values[name] = value
    return values
