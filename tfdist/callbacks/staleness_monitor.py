"""How stale gradients are, and who is fast, who waits."""

import importlib.util
import json
import sys
import time

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from tfdist.errors import ConfigurationError
from tfdist.observe import activity


class StalenessMonitor(keras.callbacks.Callback):
    """Adds to the logs of every epoch what the parameter servers have counted in it.

    Use it under `AsyncSGDStrategy`, `SyncSGDStrategy` or `ParameterServerStrategy`, to see why training is slow or learns
    badly. All workers get the same logs, so that they are in every `History`:

        staleness_mean, staleness_max        updates between the pull of the parameters and the push of the gradient; counted
                                             on each server, up to 4,096
        updates_per_second                   of the parameters, by all workers together
        updates_per_second_worker_<rank>     of one worker, where there are several: gradients that were applied
        waiting_seconds                      held up by the waiting rule, summed over the workers

    An epoch is counted from its beginning until all workers have ended it, without validation; the first one contains the
    tracing of the graphs. Place the callback before those that read the logs. It costs two requests a server and one small
    all-gather an epoch; all workers must have it.

    Args:
      log_dir: str or None, a folder for TensorBoard, where the chief writes the logs as scalars, and "staleness" as a
        histogram over the epoch's gradients.
      verbose: int; 1 shows one line an epoch on the chief.

    Raises:
      ConfigurationError: `log_dir` is given without TensorBoard installed; or, when training begins, the model's strategy has
        no parameter servers.

    Example:

    ```python
    model.fit(x, y, epochs=5, callbacks=[tfdist.callbacks.StalenessMonitor(verbose=1)])
    ```
    """

    def __init__(self, log_dir=None, verbose=0):
        super().__init__()
        if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
            raise ConfigurationError(
                "TensorBoard is expected with log_dir, as TensorFlow writes no summaries without it. Received: not "
                "installed. Run `pip install 'tfdist[tensorboard]'`, or leave log_dir out."
            )
        self.log_dir = log_dir
        self.verbose = verbose
        self._writer = None
        self._end = None

    def on_train_begin(self, logs=None):
        strategy = self.model.distribute_strategy
        if not getattr(strategy, "uses_servers", False):
            raise ConfigurationError(
                "StalenessMonitor expects a strategy with parameter servers. Received: "
                f"strategy={type(strategy).__name__}. Use AsyncSGDStrategy, or leave the callback out."
            )
        if self.log_dir is not None and strategy.is_chief:
            self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_begin(self, epoch, logs=None):
        self._before = self._counted()
        self._begin, self._end = time.perf_counter(), None

    def on_test_begin(self, logs=None):
        self._end = self._end or time.perf_counter()  # of the epoch's training: validation follows

    def on_epoch_end(self, epoch, logs=None):
        seconds = (self._end or time.perf_counter()) - self._begin
        seen = activity.between(self._before, self._counted(), seconds)
        figures = self.model.distribute_strategy.share_bytes(json.dumps(seen.logs()).encode())
        if logs is not None:
            logs.update(json.loads(figures))
        if self.model.distribute_strategy.is_chief:
            self._show(epoch, seen)

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _counted(self):
        """Returns a snapshot on the chief; all workers are between two epochs, so that nothing moves meanwhile."""
        strategy = self.model.distribute_strategy
        return {o.store.name: o.store.summaries() for o in strategy.optimizers()} if strategy.is_chief else {}

    def _show(self, epoch, seen):
        if self.verbose:
            _tell(f"Epoch {epoch + 1}: {seen.text()}")
        if self._writer is None:
            return
        with self._writer.as_default(step=epoch):
            for name, value in seen.logs().items():
                tf.summary.scalar(name, value)
            tf.summary.histogram("staleness", np.repeat(list(seen.staleness), list(seen.staleness.values())))
        self._writer.flush()


def _tell(line):
    """Writes where Keras writes its progress: to stdout, or to the log where the user has said so."""
    if keras.config.is_interactive_logging_enabled():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    else:
        logging.info(line)
