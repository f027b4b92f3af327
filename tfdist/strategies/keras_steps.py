"""Steps of a Keras model: recognising them, and giving every rank the same outputs."""

import contextlib
import threading

import keras
import tensorflow as tf
from absl import logging

from tfdist.strategies import state
from tfdist.strategies.step import FUNCTION, PREDICT, TEST, TRAIN, current

# The class that `keras.Model` has `fit` from: a layer may be mixed with it directly.
TRAINER = next(base for base in keras.Model.__mro__ if "fit" in vars(base))
_KINDS = {"train_step": TRAIN, "test_step": TEST}
_LOCAL = threading.local()


@contextlib.contextmanager
def gathering():
    """Steps that run in this context return the outputs of all workers, in the order of the rows."""
    outer = getattr(_LOCAL, "gathering", False)
    _LOCAL.gathering = True
    try:
        yield
    finally:
        _LOCAL.gathering = outer


def is_gathering():
    """Returns whether this thread is inside `gathering()`."""
    return getattr(_LOCAL, "gathering", False)


def describe(fn):
    """Returns `(kind, model, sums_loss)` of the function given to `strategy.run`."""
    if is_gathering():
        return PREDICT, None, False
    owner, name = _owner(fn)
    if isinstance(owner, TRAINER) and name in _KINDS:
        return _KINDS[name], owner, _sums_loss(owner)
    return FUNCTION, None, False


def finish(step, outputs):
    """Makes state and outputs of `step` equal on all workers; returns the outputs."""
    if step.kind == PREDICT:
        return tf.nest.map_structure(lambda leaf: _gather(step, leaf), outputs)
    if step.kind == FUNCTION or not isinstance(outputs, dict):
        _reconcile(step, [])
        return outputs
    metrics = [metric for metric in step.model.metrics if _is_written(step, metric)]
    known = _results(metrics)
    logs = dict(_leaves(outputs))
    others = [key for key in sorted(logs) if key not in known and _is_floating_scalar(logs[key])]
    averaged = dict(zip(others, _reconcile(step, [logs[key] for key in others])))
    return _replaced(outputs, {**averaged, **_results(metrics)})


def _leaves(logs):
    for key, value in logs.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value


def _replaced(logs, fresh):
    return {k: _replaced(v, fresh) if isinstance(v, dict) else fresh.get(k, v) for k, v in logs.items()}


def update_mean(original, metric, values, sample_weight=None):
    """Stands in for `keras.metrics.Mean.update_state`: a number fed without weight counts batches, not rows."""
    result = original(metric, values, sample_weight=sample_weight)
    if current() is not None:
        counts_batches = sample_weight is None and len(getattr(values, "shape", ())) == 0
        for variable in metric.variables:
            state.count_batches(variable.value, counts_batches)
    return result


def _reconcile(step, logs):
    strategy = step.strategy

    def all_reduce(tensors, names):
        return strategy.all_reduce(tensors, "sum", name=f"state of {step.kind} step", names=names)

    return state.reconcile(step, all_reduce, strategy.rank, logs)


def _owner(fn):
    """Returns the object whose method `fn` is, and the method's name; looks through `tf.function`."""
    for _ in range(8):
        owner = getattr(fn, "__self__", None)
        if owner is not None:
            return getattr(owner, "target", owner), getattr(fn, "__name__", "")
        inner = getattr(fn, "python_function", None) or getattr(fn, "__wrapped__", None)
        if inner is None:
            break
        fn = inner
    return None, ""


def _sums_loss(model):
    losses = [loss for loss in keras.tree.flatten(model.loss) if isinstance(loss, keras.losses.Loss)]
    reductions = {loss.reduction for loss in losses}
    if "mean_with_sample_weight" in reductions:
        logging.log_first_n(
            logging.WARNING,
            "A loss is averaged with reduction='mean_with_sample_weight': the mean is taken on each worker, then over "
            "rows, which differs from one process where the sums of the weights differ.",
            1,
        )
    if "sum" in reductions and len(reductions) > 1:
        logging.log_first_n(
            logging.WARNING, "Summed and averaged losses are mixed: exact only while workers hold equally many rows.", 1
        )
    return "sum" in reductions


def _is_written(step, metric):
    return any(id(variable.value) in step.written for variable in metric.variables)


def _results(metrics):
    results = {}
    for metric in metrics:
        result = metric.result()
        results.update(result if isinstance(result, dict) else {metric.name: result})
    return results


def _is_floating_scalar(value):
    return isinstance(value, tf.Tensor) and value.shape.rank == 0 and value.dtype.is_floating


def _gather(step, leaf):
    if isinstance(leaf, tf.RaggedTensor):
        lengths = _gather(step, leaf.row_lengths())
        values = _gather_values(step, leaf)
        return tf.RaggedTensor.from_row_lengths(values, lengths, validate=False)
    if isinstance(leaf, tf.SparseTensor):
        return tf.sparse.from_dense(_gather(step, tf.sparse.to_dense(leaf)))
    if not isinstance(leaf, tf.Tensor) or leaf.shape.rank == 0:
        return leaf
    if step.may_be_empty:
        leaf = leaf[: tf.where(step.has_rows(), tf.shape(leaf)[0], 0)]
    return _all_gather(step, leaf)


def _gather_values(step, ragged):
    values = ragged.values
    if step.may_be_empty:
        values = values[: tf.where(step.has_rows(), tf.cast(ragged.row_splits[-1], tf.int32), 0)]
    if isinstance(values, tf.RaggedTensor):
        return _gather(step, values)
    return _all_gather(step, values)


def _all_gather(step, tensor):
    if tensor.dtype == tf.bool:
        return tf.cast(_all_gather(step, tf.cast(tensor, tf.int32)), tf.bool)
    return step.strategy.all_gather(tensor, name="predict")
