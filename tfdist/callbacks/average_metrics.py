"""Logs that a user computed on each worker, averaged."""

import keras
import numpy as np


class AverageMetrics(keras.callbacks.Callback):
    """Averages logs over all workers at the end of every epoch and evaluation.

    Metrics that Keras keeps are the same on every worker already. Use this for numbers that other callbacks or an
    overridden method compute from one worker's data and put into the logs. Place it before callbacks that read them.
    It costs one small all-reduce an epoch.

    Args:
      names: list of the logs to average; default: every number in the logs.

    Raises:
      MismatchError: at the end of an epoch, if workers have different logs.
    """

    def __init__(self, names=None):
        super().__init__()
        self.names = names

    def on_epoch_end(self, epoch, logs=None):
        self._average(logs)

    def on_test_end(self, logs=None):
        self._average(logs)

    def _average(self, logs):
        strategy = self.model.distribute_strategy
        if not logs or getattr(strategy, "world_size", 1) == 1:
            return
        names = [name for name in sorted(logs) if self._wants(name) and np.ndim(logs[name]) == 0]
        strategy.agree("logs to be averaged", {"names": names})
        mine = np.array([float(logs[name]) for name in names], np.float64)
        means = strategy.worker_group.all_reduce(mine, "mean", name="AverageMetrics")
        logs.update(zip(names, means.tolist()))

    def _wants(self, name):
        return self.names is None or name in self.names
