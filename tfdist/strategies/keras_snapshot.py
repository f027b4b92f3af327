"""A model's and its optimizer's state as arrays, and back; the same under every strategy."""

import numpy as np

from tfdist.errors import ConfigurationError
from tfdist.strategies import keras_servers
from tfdist.strategies.keras_functions import strategy_of


def take(model, *, with_metrics):
    """Returns a dict of str to NumPy array, copies: weights, states of random generators, optimizer variables.

    Under a strategy with parameter servers they are the global ones; call it on the chief only.

    Args:
      model: a built `keras.Model`.
      with_metrics: bool, whether the metrics' counts go along, which mean something within an epoch.
    """
    strategy = strategy_of(model)
    if strategy is not None and strategy.uses_servers:
        keras_servers.fetch_for_saving(strategy, model)
    parts = _parts(model)
    if not with_metrics:
        del parts["metrics"]
    return {name: _array(v) for part, variables in parts.items() for name, v in zip(_names(part, variables), variables)}


def check(model, tensors):
    """Raises ConfigurationError unless the state in `tensors` is that of a model like this one."""
    for part in ("model", "optimizer"):
        variables = _parts(model)[part]
        expected = [f"{_tail(v)} {tuple(v.shape)} {v.dtype}" for v in variables]
        found = [f"{name.rsplit('/', 1)[-1]} {a.shape} {a.dtype.name}" for name, a in _of(part, tensors).items()]
        if expected != found:
            here, there = next(
                (pair for pair in zip(expected, found) if pair[0] != pair[1]),
                (f"{len(expected)} variables", f"{len(found)}"),
            )
            raise ConfigurationError(
                f"The {part} is expected to be like that of the checkpoint. Received: {here}, where the checkpoint has {there}. "
                "Build and compile the model as it was, or give DistributedCheckpoint another directory."
            )


def put(model, tensors):
    """Makes the model's and the optimizer's variables those of `tensors`; see `check`."""
    parts = _parts(model)
    for part in ("model", "optimizer"):
        for variable, array in zip(parts[part], _of(part, tensors).values()):
            variable.assign(array)


def put_metrics(model, tensors):
    """Makes the metrics' counts those of `tensors`, if they are there and fit."""
    arrays, variables = list(_of("metrics", tensors).values()), model.metrics_variables
    if [a.shape for a in arrays] == [tuple(v.shape) for v in variables]:
        for variable, array in zip(variables, arrays):
            variable.assign(array)


def share(strategy, model, root, parts):
    """Gives every worker rank `root`'s variables of `parts`: "model", "optimizer", "metrics"."""
    for part in parts:
        for variable in _parts(model)[part]:
            variable.assign(strategy.broadcast(variable.value, root=root, name=variable.path))


def _parts(model):
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
    return {
        "model": model.variables,
        "optimizer": optimizer.variables if optimizer is not None else [],
        "metrics": model.metrics_variables,
    }


def _names(part, variables):
    """Names that keep the order, and tell a reader what is what; the paths differ between processes."""
    return [f"{part}/{i:05d}/{v.path}" for i, v in enumerate(variables)]


def _of(part, tensors):
    return {name: array for name, array in tensors.items() if name.startswith(f"{part}/")}


def _tail(variable):
    return variable.path.rsplit("/", 1)[-1]


def _array(variable):
    return np.asarray(variable.numpy())  # a copy already
