"""The train, test and predict functions of Keras: one trace for every kind of data, and none that is taken for another."""

import weakref

from tfdist import errors
from tfdist.data import recut, shares
from tfdist.strategies import keras_elastic, keras_steps
from tfdist.strategies.replica import AbstractReplicaStrategy

_predict_functions = weakref.WeakKeyDictionary()


def strategy_of(model):
    """Returns the model's strategy if it is one of ours with several workers or servers, else None."""
    strategy = model.distribute_strategy
    if isinstance(strategy, AbstractReplicaStrategy) and (strategy.world_size > 1 or strategy.uses_servers):
        return strategy
    return None


def refuse_jit(model):
    """Raises ConfigurationError if `model` is to be compiled by XLA."""
    if model.compiled and model.jit_compile:
        raise errors.ConfigurationError(
            "What travels to other workers and servers does not run inside XLA. Received: jit_compile=True. "
            "Compile the model with jit_compile=False or jit_compile='auto'."
        )


def make_train_function(original, model, force=False):
    """Stands in for `Model.make_train_function`, which `train_on_batch` calls without `fit`."""
    return _make(original, model, force, "train_function")


def make_test_function(original, model, force=False):
    """Stands in for `Model.make_test_function`."""
    return _make(original, model, force, "test_function")


def make_predict_function(original, model, force=False):
    """Stands in for `Model.make_predict_function`.

    `predict` gathers all rows and `predict_on_batch` does not: each gets a function of its own, so that the
    trace of one is never taken for the other.
    """
    if strategy_of(model) is None:
        return original(model, force=force)
    made = _predict_functions.setdefault(model, {})
    if force or model.predict_function is None:
        made.clear()
    key = keras_steps.is_gathering()
    if key not in made:
        original(model, force=True)
        made[key] = model.predict_function
        if key and strategy_of(model).elastic is not None:
            made[key] = _Complete(made[key])
    model.predict_function = made[key]
    return made[key]


def _make(original, model, force, name):
    if strategy_of(model) is None:
        return original(model, force=force)
    refuse_jit(model)
    if force or getattr(model, name) is None:
        setattr(model, name, _ByShares(original, model, name))
    return getattr(model, name)


class _Complete:
    """Calls a function of Keras's `predict`, and finds out whether rows are missing from what it returns."""

    def __init__(self, function):
        self._function = function

    def __call__(self, data):
        outputs = self._function(data)
        part = recut.latest()
        if part is not None:
            keras_elastic.check_complete(part)
        return outputs


class _ByShares:
    """Calls a function of Keras that was made for the `Shares` which the data promise: a trace relies on them.

    Args:
      original: Keras's method that makes the function.
      model: the model.
      name: the attribute in which that method leaves it.
    """

    def __init__(self, original, model, name):
        self._original = original
        self._model = model
        self._name = name
        self._made = {}

    def __call__(self, iterator):
        if isinstance(iterator, recut.Part):
            return self._train(iterator) if self._name == "train_function" else self._test(iterator)
        return self._call(iterator)

    def _call(self, iterator):
        kind = shares.promised(iterator)
        if kind not in self._made:
            self._made[kind] = self._make()
        return shares.call(self._made[kind], iterator)

    def _train(self, part):
        fit = keras_elastic.current_fit()
        if fit is not None and fit.before_step(part):
            return fit.logs
        elastic, left = strategy_of(self._model).elastic, part.num_left
        logs = self._call_as_one_of(fit, part.ready())
        steps = self._model.steps_per_execution
        generation = elastic.generation if strategy_of(self._model).uses_servers else elastic.step_generation
        part.done(generation, steps if left is None else min(steps, left))
        if fit is not None and fit.after_step(part, logs):
            return self._train(part)  # this step is that of the others now, or one to pass over
        return logs

    def _call_as_one_of(self, fit, iterator):
        """Who has joined late traces what the others have traced: variables that are made meanwhile are its own concern."""
        if fit is None or not fit.is_to_trace_late:
            return self._call(iterator)
        fit.is_to_trace_late = False
        with strategy_of(self._model).elastic.passing():
            return self._call(iterator)

    def _test(self, part):
        fit = keras_elastic.current_fit()
        if fit is not None and fit.is_passing:
            part.batch += 1
            return fit.test_logs(self._model)
        logs = self._call(part.ready())
        keras_elastic.check_complete(part)
        return logs

    def _make(self):
        outer = getattr(self._model, self._name)
        try:
            self._original(self._model, force=True)
            return getattr(self._model, self._name)
        finally:
            setattr(self._model, self._name, outer)
