"""State that replicas write during a step (metrics, moving statistics) is made equal on all of them.

Once a step is over, everything that it wrote outside of the optimizer is combined in **one** collective:

    sum    (Keras metrics)             s <- s_old + sum_i (s_i - s_old)
    batch  (metrics fed one number a batch)   s <- s_old + sum_i n_i (s_i - s_old) / sum_i n_i
    mean   (moving statistics)         s <- sum_i n_i s_i / sum_i n_i        n_i rows on worker i
    first  (aggregation "only_first_replica")   s <- s_0

so logs, saving, early stopping and evaluation need no further communication. Floating scalars that a step returns
beside its metrics ride along as a mean over rows. A worker without rows contributes nothing, not even a NaN.
"""

import tensorflow as tf

_WRITERS = (
    "assign assign_add assign_sub scatter_add scatter_sub scatter_update scatter_max scatter_min scatter_mul "
    "scatter_div batch_scatter_update scatter_nd_add scatter_nd_sub scatter_nd_update scatter_nd_max scatter_nd_min"
).split()
_SEED_STATE = "seed_generator_state"
_PER_BATCH = "_tfdist_counts_batches"
_NARROW = (tf.float16, tf.bfloat16)


def rule_of(variable):
    """Returns `"sum"`, `"batch"`, `"mean"`, `"first"`, or None for what replicas keep equal by themselves."""
    if variable.trainable or variable.dtype in (tf.string, tf.resource, tf.variant):
        return None
    aggregation = variable.aggregation
    if aggregation == tf.VariableAggregation.SUM:
        return "batch" if getattr(variable, _PER_BATCH, False) else "sum"
    if aggregation == tf.VariableAggregation.ONLY_FIRST_REPLICA:
        return "first"
    if not variable.dtype.is_floating or _SEED_STATE in variable.name:
        return None
    return "mean"


def count_batches(variable, counts_batches):
    """Says whether metric state `variable` has just been fed one number for the whole batch, not one per row."""
    setattr(variable, _PER_BATCH, counts_batches)


def watch(variable, note):
    """Calls `note()` before every write to `variable` through its methods."""
    for name in _WRITERS:
        method = getattr(variable, name, None)
        if method is not None:
            setattr(variable, name, _noting(method, note))


def _noting(method, note):
    def write(*args, **kwargs):
        note()
        return method(*args, **kwargs)

    return write


def reconcile(step, all_reduce, rank, logs=()):
    """Makes what `step` wrote equal on all ranks.

    Args:
      step: the `ReplicaStep` that has just ended.
      all_reduce: callable `(tensors, names) -> tensors`, summing over all ranks.
      rank: this worker's rank.
      logs: floating scalars to be averaged over rows in the same collective.

    Returns:
      The averaged `logs`, a list.
    """
    entries = sorted(step.written.values(), key=lambda entry: step.strategy.extended.creation_index(entry[0]))
    if not entries and not logs:
        return list(logs)
    step.is_recording = False
    message = _Message(step)
    for variable, old in entries:
        message.add_state(variable, old, rank)
    for position, log in enumerate(logs):
        message.add_mean(tf.convert_to_tensor(log), f"log {position}")
    message.exchange(all_reduce)
    for variable, old in entries:
        variable.assign(message.take_state(variable, old))
    return [message.take_mean(tf.convert_to_tensor(log).dtype) for log in logs]


class _Message:
    """The tensors of one fused sum, put in and taken out in the same order."""

    def __init__(self, step):
        self._has_rows = step.has_rows()
        # Who takes part may change on the way, so the members are counted where they all weigh the same.
        is_known = step.has_equal_shares()
        self._weight = step.weight() if not is_known else 1 if step.strategy.elastic is not None else None
        self._world_size = step.strategy.world_size
        self._tensors = []
        self._names = []
        self._weights = {}

    def add_state(self, variable, old, rank):
        rule, value = rule_of(variable), variable.read_value()
        if rule == "mean":
            self.add_mean(value, variable.name)
        elif rule == "batch":
            self.add_mean(_wide(value) - _wide(old), variable.name)
        elif rule == "sum":
            self._append(self._or_zero(_wide(value) - _wide(old)), variable.name)
        else:
            value = tf.cast(value, tf.int32) if value.dtype == tf.bool else _wide(value)
            self._append(value if rank == 0 else tf.zeros_like(value), variable.name)

    def add_mean(self, value, name):
        value = _wide(value)
        if self._weight is not None:
            self._weights.setdefault(value.dtype, None)
            value = value * tf.cast(self._weight, value.dtype)
        self._append(self._or_zero(value), name)

    def exchange(self, all_reduce):
        weights = [tf.cast(self._weight, dtype) for dtype in self._weights]
        names = self._names + [f"rows ({dtype.name})" for dtype in self._weights]
        summed = all_reduce(self._tensors + weights, names)
        self._results = iter(summed[: len(self._tensors)])
        self._weights = dict(zip(self._weights, summed[len(self._tensors) :]))

    def take_state(self, variable, old):
        rule = rule_of(variable)
        if rule == "mean":
            return self.take_mean(variable.dtype)
        if rule == "batch":
            return tf.cast(_wide(old) + self.take_mean(_wide(old).dtype), variable.dtype)
        result = next(self._results)
        if rule == "sum":
            result = _wide(old) + result
        return tf.cast(result, variable.dtype)

    def take_mean(self, dtype):
        total = next(self._results)
        return tf.cast(total / self._weights.get(total.dtype, self._world_size), dtype)

    def _append(self, tensor, name):
        self._tensors.append(tensor)
        self._names.append(name)

    def _or_zero(self, tensor):
        return mask(self._has_rows, tensor)


def mask(has_rows, tensor):
    """Returns `tensor` where this worker holds rows, else zeros (also in place of NaN)."""
    if has_rows is True:
        return tensor
    if isinstance(tensor, tf.IndexedSlices):
        return tf.IndexedSlices(mask(has_rows, tensor.values), tensor.indices, tensor.dense_shape)
    return tf.where(has_rows, tensor, tf.zeros_like(tensor))


def scaled(tensor, factor):
    """Returns `tensor`, dense or `tf.IndexedSlices`, times a scalar."""
    if isinstance(factor, int) and factor == 1:
        return tensor
    if isinstance(tensor, tf.IndexedSlices):
        return tf.IndexedSlices(scaled(tensor.values, factor), tensor.indices, tensor.dense_shape)
    return tensor * tf.cast(factor, tensor.dtype)


def _wide(tensor):
    return tf.cast(tensor, tf.float32) if tensor.dtype in _NARROW else tensor
