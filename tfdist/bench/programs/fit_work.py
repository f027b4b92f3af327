"""What every rank of `tfdist bench fit` trains, and how it times `model.fit`. Needs TensorFlow, not tfdist."""

import time

import numpy as np
from serve import answer

_WIDTHS = {"small": (128,), "big": (2048, 2048, 2048)}  # 101,770 and 10,020,874 parameters with inputs and classes
INPUTS, CLASSES = 784, 10
_LEARNING_RATE = 0.01
_SEED = 7


def make_data(rows):
    """Returns random images of MNIST's shape: float32 [rows, 784] in [0, 1) and int32 [rows]."""
    generator = np.random.default_rng(_SEED)
    return generator.random((rows, INPUTS), np.float32), generator.integers(0, CLASSES, rows, np.int32)


def make_model(keras, name, *first):
    """Builds and compiles a multilayer perceptron with plain SGD in either Keras; the layers `first` come before it."""
    layers = [keras.layers.Dense(width, activation="relu") for width in _WIDTHS[name]]
    model = keras.Sequential([keras.layers.InputLayer((INPUTS,)), *first, *layers, keras.layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(_LEARNING_RATE), loss=loss)
    return model


def stopwatch(keras):
    """Returns a callback with `seconds`, a list: how long each epoch took."""

    class Stopwatch(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.seconds = []

        def on_epoch_begin(self, epoch, logs=None):
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(time.perf_counter() - self.begin)

    return Stopwatch()


class Trainer:
    """What the coordinator can ask of a rank; the public method is a message.

    Args:
      keras: Keras 3 or legacy tf-keras.
      model: compiled.
    """

    def __init__(self, keras, model):
        self._keras, self._model = keras, model
        self._data = make_data(0)

    def train(self, batch, steps, epochs):
        """Runs `model.fit`; `batch` is of all replicas together. Returns seconds per step of all epochs but the first.

        The first epoch of a call builds graphs and pipelines.
        """
        rows = batch * steps
        if len(self._data[0]) < rows:
            self._data = make_data(rows)
        x, y = (array[:rows] for array in self._data)
        watch = stopwatch(self._keras)
        history = self._model.fit(x, y, batch_size=batch, epochs=epochs + 1, verbose=0, callbacks=[watch])
        if not np.isfinite(history.history["loss"][-1]):
            return {"wrong": f"the loss was expected to be finite. Received: {history.history['loss']}."}
        return {"seconds": [seconds / steps for seconds in watch.seconds[1:]]}


def serve(rank, keras, model):
    """Does what the coordinator asks until it hangs up."""
    answer(rank, Trainer(keras, model))
