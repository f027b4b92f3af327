"""Where the faults that `tfdist.testing` schedules happen in a `fit`."""

import signal

import keras

from tfdist.comm import library
from tfdist.testing import faults

_POINTS = {"reducing": 0, "reduced": 1, "committed": 2}


class Faults(keras.callbacks.Callback):
    """Reaches the phases of training in their order. A step is the optimizer's count of updates before it.

    Args:
      strategy: the strategy, for its group.
    """

    def __init__(self, strategy):
        super().__init__()
        self._group = strategy.worker_group
        faults.on_drop(self._drop)

    def on_train_begin(self, logs=None):
        faults.reach("begin")

    def on_train_batch_begin(self, batch, logs=None):
        step = int(self.model.optimizer.iterations)
        faults.reach("step", step)
        for phase, point in _POINTS.items():
            for fault in faults.take(phase, step) if self._group.is_elastic else ():
                if fault.kind == "kill":
                    library.core().tfdist_group_set_fault(self._group.native, point, step, signal.SIGKILL)
                else:  # the native core knows nobody who would wake it again
                    faults.perform(fault)

    def on_train_batch_end(self, batch, logs=None):
        faults.reach("step_end", int(self.model.optimizer.iterations) - 1)

    def on_test_batch_begin(self, batch, logs=None):
        faults.reach("validation")

    def on_epoch_end(self, epoch, logs=None):
        faults.reach("epoch_end", epoch)

    def on_train_end(self, logs=None):
        faults.reach("end")

    def _drop(self, peer):
        if peer in self._group.members:
            library.core().tfdist_group_drop(self._group.native, self._group.members.index(peer))
