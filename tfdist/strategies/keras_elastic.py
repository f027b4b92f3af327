"""A worker that joins a `fit` that is going on, and those who take it in.

Without parameter servers (with them see `keras_joining.py`), between two training steps all members ask whether somebody waits (`before_step`). If so they connect with it and the
senior member hands it everything that `fit` has built up: weights, optimizer, metrics, the place in the data, the
history, what the callbacks have counted. The joiner runs the same script: earlier calls of `fit` return what they returned to the others, and
in the present one it takes a step by itself, so that everything is made and traced, before it asks to join; then it
passes over the batches and epochs that are done.
"""

import contextlib
import json
import threading

import keras
import tensorflow as tf
from absl import logging

from tfdist.cluster.lives import OVER
from tfdist.cluster.store.client import StoreTimeoutError
from tfdist.strategies.keras_handover import HandOver, plain

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
        self._elastic = strategy.elastic
        self.handover = HandOver(strategy, model, callbacks)
        self.epoch = 0  # Keras's
        self.logs = {}  # of the latest step
        self.is_to_trace_late = False  # the others have traced the step before this worker came
        self._part = None
        self._passes_until = None  # what the others told of the place where they are

    def begin_epoch(self, epoch):
        """To be called by the first of the callbacks."""
        self.epoch = epoch
        self.handover.begin()
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
        if not part.can_divide or self._strategy.uses_servers:  # with those, where an epoch begins
            return False
        joined = self._elastic.membership.admit(self._strategy.num_fit_calls)
        if joined:
            logging.info("tfdist: rank %s joins in epoch %d", ", ".join(map(str, joined)), self.epoch + 1)
            self.handover.give({"epoch": self.epoch, "part": part.state()})
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
        self.ask_to_join()
        self._passes_until = self.handover.take()
        self._elastic.is_passing = True
        part.batch = 0
        return True

    def ask_to_join(self):
        """Blocks until the others have taken this worker in.

        Raises:
          FitIsOver: they are past this `fit`.
        """
        self._elastic.membership.join(self._strategy.num_fit_calls, self._raise_if_over)

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
        self.handover.recall(meta)
        return False

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
                f"{HISTORY}{strategy.num_fit_calls}", json.dumps([history.epoch, plain(history.history)]).encode()
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
