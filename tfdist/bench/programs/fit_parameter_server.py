"""A process of `tfdist bench fit` under TensorFlow's ParameterServerStrategy, with legacy tf-keras: Keras 3 refuses it.

TF_CONFIG says which: a worker, the server, or the coordinator (`chief`), which has the model and calls `fit`. TF_CONFIG and
TF_USE_LEGACY_KERAS=1 come from the coordinator of the benchmark.
"""

import json
import os

import numpy as np
from serve import answer, pin, task

_BUFFERED_BATCHES = 2


def main():
    place = json.loads(os.environ["TF_CONFIG"])["task"]
    if place["type"] == "worker":
        pin(place["index"])
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if place["type"] != "chief":
        tf.distribute.Server(resolver.cluster_spec(), place["type"], place["index"], protocol="grpc").join()
        return
    from fit_work import make_model

    strategy = tf.distribute.ParameterServerStrategy(resolver)
    with strategy.scope():
        model = make_model(tf.keras, task()["model"])
    answer(0, Coordinator(tf, model))


class Coordinator:
    """What can be asked for, as of `fit_work.Trainer`.

    Args:
      tf: TensorFlow.
      model: of legacy Keras, compiled.
    """

    def __init__(self, tf, model):
        self._tf, self._model = tf, model

    def train(self, batch, steps, epochs):
        """Runs `model.fit`; `steps` are those of all workers, `batch` rows each. Returns seconds per step by epoch."""
        from fit_work import stopwatch

        watch = stopwatch(self._tf.keras)
        data = self._tf.keras.utils.experimental.DatasetCreator(lambda context: self._data(batch, batch * steps))
        options = {"steps_per_epoch": steps, "epochs": epochs + 1, "verbose": 0, "callbacks": [watch]}
        history = self._model.fit(data, **options)
        if not np.isfinite(history.history["loss"][-1]):
            return {"wrong": f"the loss was expected to be finite. Received: {history.history['loss']}."}
        return {"seconds": [seconds / steps for seconds in watch.seconds[1:]]}

    def _data(self, batch, rows):
        """Returns the data of one worker, made there, as `fit_work.make_data` makes it."""
        from fit_work import CLASSES, INPUTS

        x = self._tf.random.uniform([rows, INPUTS])
        y = self._tf.random.uniform([rows], 0, CLASSES, self._tf.int32)
        dataset = self._tf.data.Dataset.from_tensor_slices((x, y)).repeat()
        return dataset.batch(batch, drop_remainder=True).prefetch(_BUFFERED_BATCHES)


if __name__ == "__main__":
    main()
