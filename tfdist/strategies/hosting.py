"""Which Keras optimizers have a native update rule, and how the others get to a server, to be hosted there as themselves."""

import dataclasses
import json
import sys

import keras
import numpy as np

from tfdist.errors import ConfigurationError
from tfdist.parameter_server import rules
from tfdist.parameter_server.hosted import MIRROR, scalars_of, state_of

__all__ = [
    "MIRROR",
    "core_of",
    "dtype_of",
    "fetch",
    "options",
    "parts_of",
    "path_of",
    "rule_or_reason",
    "scalars_of",
    "scales_loss",
    "send",
]
_NATIVE_DTYPES = ("float32", "float64")
_CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")


def core_of(optimizer):
    """Returns the optimizer that updates: the inner one of a `LossScaleOptimizer`."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def parts_of(optimizer):
    """Returns the optimizers that update: those inside of a `MultiOptimizer` (Keras >= 3.13), or the optimizer itself."""
    several = getattr(keras.optimizers, "MultiOptimizer", ())
    return [part for part in optimizer.optimizers if part.built] if isinstance(optimizer, several) else [optimizer]


def scales_loss(optimizer):
    """Whether the optimizer looks for infinite gradients itself."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def rule_or_reason(optimizer, variables, is_in_step):
    """Returns `(rule, None)`, or `(None, reason)` where the optimizer must be hosted as itself.

    Args:
      optimizer: a built Keras optimizer.
      variables: those it trains.
      is_in_step: bool, whether gradients of several workers are combined before the update, so that a clip must follow.
    """
    rule = rules.rule_of(optimizer)
    if rule is None:
        return None, "there is no native rule for it"
    for variable in variables:
        path, dtype = path_of(variable), dtype_of(variable)
        if dtype not in _NATIVE_DTYPES:
            return None, f"{path} is of type {dtype}"
        if variable.constraint is not None:
            return None, f"{path} has a constraint"
        if _is_overwritten(variable):
            return None, f"{path} is overwritten with its gradient"
    if is_in_step and any(getattr(optimizer, name) is not None for name in _CLIPPING):
        return None, "the sum of the workers' gradients is clipped"
    return rule, None


def path_of(variable):
    """Returns the path of a Keras variable, or the name of a `tf.Variable`."""
    return getattr(variable, "path", None) or variable.name


def dtype_of(variable):
    """Returns the type of a Keras variable or a `tf.Variable`, a str."""
    return variable.dtype if isinstance(variable.dtype, str) else variable.dtype.name


def _is_overwritten(variable):
    return bool(getattr(variable, "overwrite_with_gradient", False))


def options(base, optimizer, rule, variables, *, clips):
    """Returns the `Options` of the optimizer's store; `clips`: workers clip before they push."""
    if rule is None:
        return dataclasses.replace(base, hosted=_description(optimizer, variables, clips))
    return dataclasses.replace(
        base,
        weight_decay=float(optimizer.weight_decay or 0.0),
        average_momentum=float(optimizer.ema_momentum) if optimizer.use_ema else -1.0,
        average_overwrites=int(optimizer.ema_overwrite_frequency or 0) if optimizer.use_ema else 0,
    )


def _description(optimizer, variables, clips):
    if type(core_of(optimizer)).__module__ == "__main__":
        raise ConfigurationError(
            f"The optimizer {type(core_of(optimizer)).__name__} runs on the parameter server, which imports its class. "
            "Received: one defined in the script itself. Put the class into a module of its own."
        )
    serialized = json.loads(json.dumps(keras.optimizers.serialize(optimizer), default=float))
    core = serialized["config"]["inner_optimizer"] if scales_loss(optimizer) else serialized
    # Both come with every push, scheduled and scaled by the worker.
    core["config"].update(learning_rate=0.001, loss_scale_factor=None)
    if clips:
        core["config"].update(dict.fromkeys(name for name in _CLIPPING if name in core["config"]))
    constraints = [v.constraint and keras.constraints.serialize(v.constraint) for v in variables]
    return {
        "optimizer": serialized,
        "constraints": constraints,
        "overwritten": [_is_overwritten(variable) for variable in variables],
        "path": [entry for entry in sys.path if entry],
        "floatx": keras.config.floatx(),
    }


def send(store, optimizer):
    """Makes the hosted optimizer's variables those of this one."""
    for index, variable in enumerate(state_of(optimizer)):
        store.write_variable(store.servers[0], index, np.asarray(variable.numpy()))


def fetch(store, optimizer):
    """Makes this optimizer's variables those of the hosted one, but for the learning rate, which is ours."""
    for index, variable in enumerate(state_of(optimizer)):
        array = np.array(variable.numpy(), order="C")
        store.read_variable(store.servers[0], index, array)
        variable.assign(array)
