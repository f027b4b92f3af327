"""A worker of `tfdist bench stragglers`: trains a small model by one strategy, or by itself; its step sleeps besides."""

import os
import time

import numpy as np
from serve import answer, pin, task


def main():
    rank = int(os.environ["TFDIST_RANK"])
    pin(rank)
    import keras
    import tensorflow as tf
    from fit_work import make_model

    slowness, strategy = Slowness(rank), None
    first = delay(keras, tf, slowness)
    if task()["strategy"] is None:
        model = make_model(keras, task()["model"], first)
    else:
        import tfdist

        strategy = tfdist.strategy(task()["strategy"], **task()["options"])
        with strategy.scope():
            model = make_model(keras, task()["model"], first)
    answer(rank, Worker(rank, keras, model, strategy, slowness))


class Slowness:
    """How long the next step of a rank sleeps.

    Args:
      rank: int; the same numbers are drawn in every run.
    """

    def __init__(self, rank):
        self._rank = rank
        self._random = np.random.default_rng([1, rank])
        self._seconds, self._factor, self._share = 0.0, 1.0, None
        self.steps = 0

    def set(self, seconds, factor, share=None):
        """Steps take `seconds`; times `factor` each (share None), or where a number in [0, 1) is below `share`."""
        self._seconds, self._factor, self._share = seconds, factor, share
        self.steps = 0

    def sleep(self):
        """Sleeps as long as this step is to take; returns 0, because a TensorFlow operation returns something."""
        self.steps += 1
        is_slow = self._share is None or self._random.random() < self._share
        time.sleep(self._seconds * (self._factor if is_slow else 1.0))
        return np.int64(0)


def delay(keras, tf, slowness):
    """Returns a layer that passes its input on when it has slept; in training only."""

    class Delay(keras.layers.Layer):
        def call(self, inputs, training=False):
            if not training:
                return inputs
            with tf.control_dependencies([tf.numpy_function(slowness.sleep, [], tf.int64)]):
                return tf.identity(inputs)

    return Delay()


class Worker:
    """What the coordinator can ask of a rank; the public method is a message.

    Args:
      rank: int.
      keras: Keras 3.
      model: compiled, with the layer of `delay`.
      strategy: a strategy, or None.
      slowness: the `Slowness` of that layer.
    """

    def __init__(self, rank, keras, model, strategy, slowness):
        self._rank, self._keras, self._model = rank, keras, model
        self._strategy, self._slowness = strategy, slowness

    def train(self, batch_size, batch, batches, slowness):
        """Runs an epoch of `model.fit`.

        Args:
          batch_size: int, what `fit` is told.
          batch: int, samples of one worker's step.
          batches: list of int by rank, whose sum is the epoch's; without a strategy each takes its own.
          slowness: list by rank of the arguments of `Slowness.set`.

        Returns:
          "seconds" of the epoch, "batches" of this worker in it, and "record": what the server has counted of it, or None.
        """
        from fit_work import make_data, stopwatch

        x, y = make_data(batch * (sum(batches) if self._strategy else batches[self._rank]))
        self._slowness.set(**slowness[self._rank])
        watch = stopwatch(self._keras)
        before = self._record()
        history = self._model.fit(x, y, batch_size=batch_size, epochs=1, verbose=0, callbacks=[watch])
        if not np.isfinite(history.history["loss"][-1]):
            return {"wrong": f"the loss was expected to be finite. Received: {history.history['loss']}."}
        record = subtract(self._record(), before) if before else self._record()
        return {"seconds": watch.seconds[0], "batches": self._slowness.steps, "record": record}

    def _record(self):
        optimizers = self._strategy.optimizers() if getattr(self._strategy, "uses_servers", False) else []
        return optimizers[0].store.summaries()[0]["workers"][str(self._rank)] if optimizers else None


def subtract(after, before):
    """Returns what has been counted since; both are dicts of numbers, and of such dicts."""
    return {
        key: subtract(value, before.get(key, {})) if isinstance(value, dict) else value - before.get(key, 0)
        for key, value in after.items()
    }


if __name__ == "__main__":
    main()
