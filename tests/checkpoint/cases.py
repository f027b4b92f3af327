"""What trainings with checkpoints share: data, a model, an interruption."""

import contextlib

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
