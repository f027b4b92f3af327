"""What trainings with checkpoints share: data, a model, an interruption."""

import contextlib
import os
import signal

import keras
import numpy as np


class Interrupted(Exception):
    """Stands for the end of the process."""


class Interrupt(keras.callbacks.Callback):
    """Raises at the end of a step or an epoch.

    Args:
      epoch: int.
      batch: int, or None for the end of the epoch.
    """

    def __init__(self, epoch, batch=None):
        super().__init__()
        self._at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self._epoch, batch) == self._at:
            raise Interrupted

    def on_epoch_end(self, epoch, logs=None):
        if (epoch, None) == self._at:
            raise Interrupted


def data(rows=40):
    """Returns inputs and targets, every row distinct."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 5)).astype("float32")
    return x, np.tanh(x @ generator.normal(size=(5, 3))).astype("float32")


def compiled(strategy=None, optimizer="adam", units=8):
    """Returns a small model, made anew as a new process would."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(7)
    with strategy.scope() if strategy is not None else contextlib.nullcontext():
        model = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(units, activation="tanh"), keras.layers.Dense(3)]
        )
        model.compile(optimizer, "mse", metrics=["mae"])
    return model


def state(model):
    """Returns the model's and the optimizer's variables as arrays."""
    return [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]


def phase(directory, name, until, epochs=6, **options):
    """One of several jobs in a row: resumes, and ends at the end of epoch `until`.

    Returns what the checkpoint's reader can be judged by: losses before and after, the epochs, the state.
    """
    import tfdist

    keras.config.set_floatx("float64")
    strategy = tfdist.strategy(name, **options) if name is not None else None
    model = compiled(strategy)
    x, y = data()
    losses = {}

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if not losses:
                losses["begin"] = loss(model, x, y)

    checkpoints = tfdist.callbacks.DistributedCheckpoint(directory)
    callbacks = [checkpoints, Look(), *([Interrupt(until)] if until is not None else [])]
    try:
        model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)
    except Interrupted:
        checkpoints._writer.wait(60)
    losses["end"] = loss(model, x, y)
    if strategy is not None and strategy.uses_servers:
        strategy.barrier("the phase is over")
        strategy.close()
    return {**losses, "epochs": model.history.epoch, "state": np.concatenate([np.ravel(v) for v in state(model)])}


class Terminate(keras.callbacks.Callback):
    """Sends SIGTERM to this process, once, at the end of a step of training, or of validation, or of the first one after it."""

    def __init__(self, epoch, batch, in_validation=False):
        super().__init__()
        self._at = (epoch, batch)
        self._in_validation = in_validation

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self._send(batch, False)

    def on_test_batch_end(self, batch, logs=None):
        self._send(batch, True)

    def _send(self, batch, in_validation):
        if self._at and in_validation == self._in_validation and (self._epoch, batch) >= self._at:
            self._at = None
            os.kill(os.getpid(), signal.SIGTERM)


def terminated(directory, name, ranks, in_validation=False):
    """Trains until SIGTERM comes to some ranks at the end of step 2 of epoch 1; ends with the exit code that follows."""
    import tfdist

    strategy = tfdist.strategy(name) if name is not None else None
    model = compiled(strategy)
    x, y = data()
    callbacks = [tfdist.callbacks.DistributedCheckpoint(directory)]
    if tfdist.rank() in ranks:
        callbacks.insert(0, Terminate(1, 2, in_validation))
    model.fit(x, y, batch_size=8, epochs=50, verbose=0, validation_data=(x, y), callbacks=callbacks)


def loss(model, x, y):
    """Returns the loss on the whole batch, computed by this worker alone."""
    return float(np.mean((model(x).numpy() - y) ** 2))
