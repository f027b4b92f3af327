"""`fit`, `evaluate` and `predict` on every worker: agreement before, the chief's voice during, all rows after."""

import contextlib
import inspect
import threading
import types
import zlib

import keras
import numpy as np
import tensorflow as tf

from tfdist.comm import failures
from tfdist.data import permutation, py_dataset, uneven
from tfdist.errors import TfdistError
from tfdist.strategies import keras_elastic, keras_faults, keras_saving, keras_servers, keras_steps
from tfdist.strategies.keras_functions import refuse_jit, strategy_of
from tfdist.strategies.replica import AbstractReplicaStrategy
from tfdist.testing import faults

_LOCAL = threading.local()


class TrainerCall:
    """A `fit`, `evaluate` or `predict` that is going on: where its data gets strategy and seed from.

    Args:
      strategy: the strategy of the model.
      seed: list of ints that decides the order of array data.
      is_one_shot: whether the data is a generator, which can be read once only.
      is_fit: whether it is a `fit`, whose first data are those to train on.
      has_length: whether the user says how many steps an epoch has.
    """

    def __init__(self, strategy, seed, is_one_shot, is_fit=False, has_length=False):
        self.strategy = strategy
        self.seed = seed
        self.is_one_shot = is_one_shot
        self.is_fit = is_fit
        self._trains_next = is_fit
        self.epoch_logs = {}  # of the last epoch that is over
        self.training_data = None  # as distributed
        self.is_late = False  # the other workers have been in this call for longer
        self.orders = []  # what draws the order of the data, epoch by epoch
        self._has_length = has_length

    def deals_next(self):
        """Whether the data that come next are to train on, and workers take of them at their own pace.

        Not with `steps_per_epoch`: an epoch then is so many steps of each worker.
        """
        return self._trains_next and not self.strategy.is_in_step and not self._has_length

    def take_training_data(self):
        """Returns whether the data that come now are those to train on; says so only once."""
        trains, self._trains_next = self._trains_next, False
        return trains


def current_call():
    """Returns this thread's innermost `TrainerCall`, or None."""
    return getattr(_LOCAL, "call", None)


def take_one_shot():
    """Returns whether the data that this thread is about to distribute is a generator; says so only once."""
    call = current_call()
    is_one_shot = call is not None and call.is_one_shot
    if is_one_shot:
        call.is_one_shot = False
    return is_one_shot


def fit(original, model, *args, **kwargs):
    """Stands in for `Model.fit`."""
    strategy = strategy_of(model)
    if strategy is None:
        return _alone(original, model, args, kwargs)
    refuse_jit(model)
    call = _bind(original, model, args, kwargs)
    strategy.num_fit_calls += 1
    seed = [permutation.job_seed(strategy), strategy.num_fit_calls]
    strategy.agree("model.fit", _description(model, call, strategy, seed))
    if isinstance(call["x"], keras.utils.PyDataset) and call["shuffle"]:
        call["x"], call["shuffle"] = py_dataset.SharedOrder(call["x"], seed), False
    told, first_epoch = keras_elastic.finished_history(strategy)
    if told is not None:
        return keras_elastic.made_history(model, told)
    call["initial_epoch"] = max(call["initial_epoch"], first_epoch)
    call["callbacks"] = _fit_callbacks(strategy, call["callbacks"], call["initial_epoch"])
    _be_quiet(strategy, call)
    try:
        with _calling(strategy, seed, call["x"], is_fit=True, has_length=call["steps_per_epoch"] is not None):
            if isinstance(call["x"], py_dataset.SharedOrder):
                current_call().orders.append(call["x"])
            history = _fit(original, model, strategy, call)
    except TfdistError:
        with _calling(strategy, seed, None, is_fit=True):
            for callback in call["callbacks"]:  # what Keras does not tell them
                getattr(callback, "emergency", lambda: None)()
        raise
    keras_elastic.keep_history(strategy, history)
    strategy.agree("end of model.fit", {"fit call": strategy.num_fit_calls})
    return history


def _fit(original, model, strategy, call):
    if strategy.elastic is not None:
        return _fit_elastic(original, model, strategy, call)
    return _run_fit(original, model, strategy, call)


def _fit_elastic(original, model, strategy, call):
    callbacks = call["callbacks"]
    is_list = isinstance(callbacks, keras.callbacks.CallbackList)
    fit = keras_elastic.Fit(strategy, model, callbacks.callbacks if is_list else callbacks)
    if is_list:
        callbacks.callbacks.insert(0, keras_elastic.Progress(fit))
    else:
        call["callbacks"] = [keras_elastic.Progress(fit), *callbacks]
    with keras_elastic.fitting(fit):
        try:
            return _run_fit(original, model, strategy, call)
        except keras_elastic.FitIsOver:
            return keras_elastic.made_history(model, keras_elastic.await_history(strategy))


def _run_fit(original, model, strategy, call):
    if not strategy.uses_servers:
        return original(model, **call)
    try:
        history = original(model, **call)
    except BaseException:
        keras_servers.abandon(strategy)
        raise
    keras_servers.end_of_fit(strategy, model)
    return history


def evaluate(original, model, *args, **kwargs):
    """Stands in for `Model.evaluate`."""
    strategy = strategy_of(model)
    if strategy is None:
        return _alone(original, model, args, kwargs)
    call = _bind(original, model, args, kwargs)
    values = {key: repr(call[key]) for key in ("batch_size", "steps")}
    strategy.agree("model.evaluate", {**values, **_data_description(call["x"])})
    return _without_training(original, model, (), call)


def predict(original, model, *args, **kwargs):
    """Stands in for `Model.predict`: all rows, in order, on every worker."""
    if strategy_of(model) is None:
        return original(model, *args, **kwargs)
    with keras_steps.gathering():
        return _without_training(original, model, args, kwargs)


def _alone(original, model, args, kwargs):
    """One worker: plain Keras, except that no batch of a generator is lost on finding out its shapes."""
    x = args[0] if args else kwargs.get("x")
    strategy = model.distribute_strategy
    if not isinstance(x, types.GeneratorType) or not isinstance(strategy, AbstractReplicaStrategy):
        return original(model, *args, **kwargs)
    with _calling(strategy, [], x):
        return original(model, *args, **kwargs)


def _without_training(original, model, args, kwargs):
    strategy = strategy_of(model)
    refuse_jit(model)
    call = _bind(original, model, args, kwargs)
    _be_quiet(strategy, call)
    x = None if keras_steps.is_gathering() else call["x"]  # predict does not look at a batch beforehand
    with _calling(strategy, [0], x):
        if strategy.elastic is None:
            return original(model, **call)
        return keras_elastic.completed(strategy, lambda: original(model, **call))


@contextlib.contextmanager
def _calling(strategy, seed, x, *, is_fit=False, has_length=False):
    outer = current_call()
    _LOCAL.call = TrainerCall(strategy, seed, isinstance(x, types.GeneratorType), is_fit, has_length)
    try:
        with failures.translated():
            yield
    finally:
        _LOCAL.call = outer


def _bind(original, model, args, kwargs):
    bound = inspect.signature(original).bind(model, *args, **kwargs)
    bound.apply_defaults()
    call = dict(bound.arguments)
    call.pop("self")
    call.update(call.pop("kwargs", {}))
    for key in ("x", "validation_data"):
        if key in call:
            call[key] = uneven.for_trainer(call[key])
    return call


def _be_quiet(strategy, call):
    if isinstance(call["callbacks"], keras.callbacks.CallbackList):
        return
    if strategy.elastic is None and not strategy.is_chief:
        call["verbose"] = 0
    elif strategy.elastic is not None and not strategy.is_chief and "epochs" in call and call["verbose"] != 0:
        verbose, call["verbose"] = call["verbose"], 0
        keras_elastic.add_progress_bar(strategy, call, verbose)
    elif strategy.elastic is not None and not strategy.is_chief:
        call["verbose"] = 0


def _fit_callbacks(strategy, callbacks, initial_epoch):
    last = [_AgreeOnStart(strategy, initial_epoch)]
    if faults.are_scheduled():
        last.append(keras_faults.Faults(strategy))
    if strategy.uses_servers:
        last.append(keras_servers.Training(strategy))
    if isinstance(callbacks, keras.callbacks.CallbackList):
        for callback in last:
            callbacks.append(callback)
        return callbacks
    callbacks = [] if callbacks is None else keras.tree.flatten(callbacks)
    first = [] if strategy.is_in_step or strategy.world_size == 1 else [keras_servers.Logs()]
    return [*first, *keras_saving.callbacks_of(strategy, callbacks), *last]


class _AgreeOnStart(keras.callbacks.Callback):
    """Runs after every other callback has had its say about where training starts and from which weights."""

    def __init__(self, strategy, initial_epoch):
        super().__init__()
        self._strategy = strategy
        self._initial_epoch = initial_epoch

    def on_train_begin(self, logs=None):
        epoch = getattr(self.model, "_initial_epoch", None) or self._initial_epoch
        values = {"initial epoch": epoch}
        for position, variable in enumerate(self.model.trainable_variables):
            values[f"weights of variable {position}"] = f"{_tail(variable)} crc32 {_checksum(variable)}"
        self._strategy.agree("start of training (restored weights differ? see BroadcastInitialState)", values)


def _description(model, call, strategy, seed):
    values = {key: call[key] for key in ("batch_size", "epochs", "steps_per_epoch", "validation_split")}
    values = {key: repr(value) for key, value in values.items()}
    values.update({"shuffle": repr(call["shuffle"]), "fit call": strategy.num_fit_calls, "data seed": seed[0]})
    values.update(_data_description(call["x"]))
    values["validation"] = repr(call["validation_data"] is not None)
    values["number of variables"] = len(model.variables)
    for position, variable in enumerate(model.variables):
        values[f"variable {position}"] = f"{_tail(variable)} {tuple(variable.shape)} {variable.dtype}"
    return values


def _data_description(x):
    """What the promises about the workers' shares follow from (see `tfdist.data.shares`), fit for JSON."""
    description = {"type of x": type(x).__name__, "rows": _rows(x)}
    if isinstance(x, tf.data.Dataset):
        description["batches of x"] = [str(spec.shape[:1]) for spec in tf.nest.flatten(x.element_spec)]
    return description


def _rows(x):
    for leaf in keras.tree.flatten(x):
        shape = getattr(leaf, "shape", None)
        if shape is not None and len(shape):
            return str(shape[0])
    return "unknown"


def _tail(variable):
    return variable.path.rsplit("/", 1)[-1]


def _checksum(variable):
    return zlib.crc32(np.ascontiguousarray(variable.numpy()).view(np.uint8).data)
