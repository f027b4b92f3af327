"""What is known about the `strategy.run` call that is going on in this thread.

A step is opened by `AbstractReplicaStrategy.run` and read by everybody who acts inside it: the gradient
reduction (how many rows does this worker hold, how did the user scale the loss), the state reconciliation (which
variables were written) and Keras's questions for the number of replicas.
"""

import sys
import threading

import tensorflow as tf

from tfdist.data.shares import Shares
from tfdist.strategies import rows as batch_rows

_ACTIVE = threading.local()

TRAIN, TEST, PREDICT, FUNCTION = "train", "test", "predict", "function"

# Callers inside TensorFlow and Keras whose question for the number of replicas tells how the loss is scaled.
_SCALES = "scale_loss_for_distribution"
_UNSCALES = "unscale_loss_for_distribution"
_REGULARIZES = "scale_regularization_loss"


def current():
    """Returns the innermost step of this thread, or None outside of `strategy.run`."""
    stack = getattr(_ACTIVE, "stack", None)
    return stack[-1] if stack else None


class ReplicaStep:
    """One call of a replica function.

    Args:
      strategy: the strategy whose `run` was called.
      kind: `"train"`, `"test"`, `"predict"` (steps of a Keras model) or `"function"` (a user's own function).
      model: the Keras model of a `"train"` or `"test"` step, else None.
      rows: number of rows of the batch on this worker, an int or a scalar int64 tensor.
      sums_loss: True when the model's compiled losses are summed over the batch instead of averaged.
      shares: what the data promise of the workers' shares.
      is_alone: whether this worker takes the step by itself, at its own pace.
    """

    def __init__(self, strategy, kind, model, rows, sums_loss, shares=Shares.UNKNOWN, is_alone=False):
        self.strategy = strategy
        self.kind = kind
        self.model = model
        self.rows = rows
        self.sums_loss = sums_loss
        self.may_be_empty = shares is Shares.UNKNOWN and batch_rows.may_be_empty(rows)
        self._is_equal = shares is Shares.EQUAL
        self.graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        self.written = {}
        self.loss_is_scaled = False
        self.count_is_read = False
        self.optimizer_depth = 0
        self.is_recording = True
        self.is_alone = is_alone
        self.read_by_row = set()  # ids of the variables of which servers send the rows that this step reads

    def __enter__(self):
        if not hasattr(_ACTIVE, "stack"):
            _ACTIVE.stack = []
        _ACTIVE.stack.append(self)
        return self

    def __exit__(self, *exc_info):
        _ACTIVE.stack.pop()

    @property
    def is_keras(self):
        return self.kind != FUNCTION

    def answer_replica_count(self):
        """Answers a question for `num_replicas_in_sync` and notes what it says about the loss.

        Keras divides every averaged loss by this number. Inside a Keras step it is told 1: then losses, their
        logs and their gradients are those of one process and the gradients are averaged by rows afterwards. A user's
        own function sees the true number, as under every `tf.distribute` strategy.
        """
        if self.is_alone:
            return 1
        world_size = self.strategy.world_size
        asker = _asker()
        if asker == _REGULARIZES:
            return world_size
        if asker in (_SCALES, _UNSCALES):
            self.loss_is_scaled = True
            return 1 if self.is_keras and not self.sums_loss else world_size
        self.count_is_read = True
        return world_size

    def gradient_rule(self):
        """Returns `(op, factor)`: how the gradients of this step are combined, and what to multiply by then."""
        world_size = self.strategy.world_size
        if self.is_keras:
            if self.sums_loss:
                return "sum", 1
            return "mean", world_size if self.count_is_read else 1
        if self.loss_is_scaled or self.count_is_read:
            return "mean", world_size
        return "sum", 1

    def weight(self):
        """Returns the number of rows as a scalar usable in the graph that is being built, or an int."""
        if tf.executing_eagerly():
            return self.rows
        if self.graph is tf.compat.v1.get_default_graph():
            return self.rows
        # A nested function may be reused by later steps: the count must not be frozen into its trace.
        return self.strategy.extended.rows_variable().read_value()

    def has_rows(self):
        """Returns a scalar bool (Python or tensor): does this worker hold any row of the batch?"""
        return self.weight() > 0 if self.may_be_empty or self._is_nested() else True

    def has_equal_shares(self):
        """Returns whether all workers are known to hold equally many rows; never inside of a nested function."""
        return self._is_equal and not self._is_nested()

    def note_write(self, variable):
        """Remembers the value that `variable` has before this step writes it for the first time."""
        if not self.is_recording or self.optimizer_depth or id(variable) in self.written:
            return
        self.strategy.extended.remember_written(variable, nested=self._is_nested())
        self.written[id(variable)] = (variable, self._read(variable))

    def expect_write(self, variable):
        """As `note_write`, for a variable that a function traced earlier may write unseen."""
        if id(variable) not in self.written:
            self.written[id(variable)] = (variable, self._read(variable))

    def _is_nested(self):
        return not tf.executing_eagerly() and tf.compat.v1.get_default_graph() is not self.graph

    def _read(self, variable):
        if self.graph is None:
            with tf.init_scope():
                return variable.read_value()
        if tf.compat.v1.get_default_graph() is self.graph:
            return variable.read_value()
        with self.graph.as_default():
            return variable.read_value()


def _asker():
    """Returns the name of the known function that asks, or None. Runs while tracing, so it may be slow."""
    frame = sys._getframe(2)
    for _ in range(10):
        if frame is None:
            return None
        name = frame.f_code.co_name
        if name in (_SCALES, _UNSCALES, _REGULARIZES):
            return name
        frame = frame.f_back
    return None
