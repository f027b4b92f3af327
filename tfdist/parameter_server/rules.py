"""Which update rule a Keras optimizer stands for, so that a server can apply it without Keras.

A rule is what an optimizer does to one tensor with one gradient. The learning rate and the weight decay come with every
update; clipping, averaging (EMA), constraints and the loss scale are not part of it. All rules here are elementwise: a
tensor may be cut anywhere.
"""

import dataclasses
import math
import numbers

from tfdist.errors import ConfigurationError

# The order is that of tfdist_rule_kind; the names and the order of the parameters are Keras's attributes and tfdist.h's.
_ADAM = ("beta_1", "beta_2", "epsilon")
_FTRL_STRENGTHS = tuple(f"{kind}_regularization_strength" for kind in ("l1", "l2", "l2_shrinkage"))
PARAMETERS = {
    "add": (),
    "sgd": ("momentum",),
    "adam": _ADAM,
    "adagrad": ("initial_accumulator_value", "epsilon"),
    "rmsprop": ("rho", "momentum", "epsilon"),
    "adadelta": ("rho", "epsilon"),
    "adamax": _ADAM,
    "nadam": _ADAM,
    "ftrl": ("learning_rate_power", "initial_accumulator_value", *_FTRL_STRENGTHS, "beta"),
    "lion": ("beta_1", "beta_2"),
}
FLAGS = {"sgd": ("nesterov",), "adam": ("amsgrad",), "rmsprop": ("centered",)}


@dataclasses.dataclass(frozen=True)
class Rule:
    """An update rule with its hyperparameters.

    Args:
      kind: a key of `PARAMETERS`; "adam" with weight decay is AdamW, "add" adds the gradient to the parameters.
      parameters: the hyperparameters that `PARAMETERS[kind]` names, floats.
      flags: the names of those of `FLAGS[kind]` that are set.

    Raises:
      ConfigurationError: one of them is unknown, missing or not finite.
    """

    kind: str
    parameters: tuple = ()
    flags: tuple = ()

    def __post_init__(self):
        if self.kind not in PARAMETERS:
            raise ConfigurationError(
                f"The kind of a rule was expected to be one of {', '.join(PARAMETERS)}. Received: kind={self.kind!r}. "
                "Host other optimizers as themselves."
            )
        names = PARAMETERS[self.kind]
        if len(self.parameters) != len(names) or not all(math.isfinite(value) for value in self.parameters):
            raise ConfigurationError(
                f"Rule {self.kind!r} was expected to have {len(names)} finite parameters {names}. Received: "
                f"parameters={self.parameters}. Give them in this order."
            )
        if not set(self.flags) <= set(FLAGS.get(self.kind, ())):
            raise ConfigurationError(
                f"The flags of rule {self.kind!r} were expected to be among {FLAGS.get(self.kind, ())}. Received: "
                f"flags={self.flags}. Remove the others."
            )

    @property
    def hyperparameters(self):
        """Name -> value of the parameters."""
        return dict(zip(PARAMETERS[self.kind], self.parameters))

    @property
    def slot_names(self):
        """What the rule keeps of each tensor, in Keras's order and with Keras's names."""
        if self.kind == "rmsprop":
            momentum = ("momentum",) * (self.hyperparameters["momentum"] > 0)
            return ("velocity", *momentum, *("average_gradient",) * ("centered" in self.flags))
        return {
            "add": (),
            "sgd": ("momentum",) * any(self.parameters),
            "adam": ("momentum", "velocity", *("velocity_hat",) * ("amsgrad" in self.flags)),
            "adagrad": ("accumulator",),
            "adadelta": ("accumulated_grad", "accumulated_delta_var"),
            "adamax": ("momentum", "norm"),
            "nadam": ("momentum", "velocity"),
            "ftrl": ("accumulator", "linear"),
            "lion": ("momentum",),
        }[self.kind]


def make_rule(kind, *flags, **hyperparameters):
    """Returns a `Rule` from hyperparameters by name, such as `make_rule("sgd", "nesterov", momentum=0.9)`."""
    names = PARAMETERS.get(kind, ())
    if set(hyperparameters) != set(names) and kind in PARAMETERS:
        raise ConfigurationError(
            f"Rule {kind!r} was expected to have the parameters {names}. Received: {tuple(hyperparameters)}. Give each once."
        )
    return Rule(kind, tuple(float(hyperparameters[name]) for name in names), flags)


def rule_of(optimizer):
    """Returns the `Rule` of a Keras optimizer, or None: then it must be hosted as itself.

    Exactly Keras's own SGD, Adam, AdamW, Adagrad, RMSprop, Adadelta, Adamax, Nadam, Ftrl and Lion have one. A class derived
    from one of them may do anything; Adafactor, Lamb and Muon look at a whole tensor; LossScaleOptimizer and
    `gradient_accumulation_steps` keep state between updates.
    """
    import keras

    classes = {getattr(keras.optimizers, name): name.lower() for name in _CLASSES if hasattr(keras.optimizers, name)}
    kind = classes.get(type(optimizer))
    if kind is None or optimizer.gradient_accumulation_steps:
        return None
    kind = "adam" if kind == "adamw" else kind
    values = [getattr(optimizer, name) for name in PARAMETERS[kind]]
    if not all(isinstance(value, numbers.Real) for value in values):
        return None  # variables or tensors that may change
    flags = tuple(flag for flag in FLAGS.get(kind, ()) if getattr(optimizer, flag))
    return Rule(kind, tuple(map(float, values)), flags)


_CLASSES = ("SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "Adadelta", "Adamax", "Nadam", "Ftrl", "Lion")


def slot_variables(optimizer, variables):
    """Returns for each of `variables` the list of the optimizer's variables that correspond to the rule's slots.

    They are found in the public `optimizer.variables`, whose order is: iteration, learning rate (unless it is a schedule),
    moving averages (EMA), then slot by slot of all variables, where slots that are created together (all but Adam's
    `velocity_hat` and those of RMSprop) take turns. Each name ends with the slot's, which is checked.

    Nadam keeps one more number, `u_product`, for all variables: see `scalar_variable`.

    Args:
      optimizer: a built Keras optimizer that has a rule.
      variables: the variables it was built with, in that order.

    Raises:
      ConfigurationError: the optimizer has no rule or is not built with these, or this Keras orders its variables otherwise.
    """
    rule = _rule_or_raise(optimizer)
    owners = [i for i, variable in enumerate(variables) if not getattr(variable, "overwrite_with_gradient", False)]
    order = [(i, name) for group in _groups_of_slots(rule) for i in owners for name in group]
    held = optimizer.variables
    end = len(held) - (rule.kind == "nadam")
    found = held[end - len(order) : end] if len(order) <= end else []
    slots = [[] for _ in variables]
    for (i, name), slot in zip(order, found):
        if not slot.name.endswith(f"_{name}") or slot.shape != variables[i].shape:
            found = []
            break
        slots[i].append(slot)
    if len(found) != len(order):
        raise ConfigurationError(
            f"The last variables of {type(optimizer).__name__} were expected to be {rule.slot_names} of {len(variables)} "
            f"variables. Received: {[variable.name for variable in held]}. Build the optimizer with these variables first; "
            "if it is, this version of Keras keeps them in another order."
        )
    return slots


def scalar_variable(optimizer):
    """Returns Nadam's `u_product`, the last of its variables, or None for the other optimizers.

    It is the product of u(1) ... u(iterations), of the dtype of the first variable. A server keeps it per tensor: state that
    goes there sets a tensor's scalars to (u_product, u_product, iterations), and `scalars[0]`, or `scalars[1]` of float32
    tensors, comes back. In fact it depends on the iterations alone.
    """
    if _rule_or_raise(optimizer).kind != "nadam":
        return None
    variable = optimizer.variables[-1]
    if tuple(variable.shape) != ():
        raise ConfigurationError(
            f"The last variable of Nadam was expected to be its scalar u_product. Received: {variable.name} of shape "
            f"{tuple(variable.shape)}. Build the optimizer first; if it is, this version of Keras keeps it elsewhere."
        )
    return variable


def _groups_of_slots(rule):
    # Slots of one group are created together, variable by variable.
    names = rule.slot_names
    if rule.kind == "rmsprop":
        return [(name,) for name in names]
    return [names[:2], names[2:]] if rule.kind == "adam" else [names]


def _rule_or_raise(optimizer):
    rule = rule_of(optimizer)
    if rule is None:
        raise ConfigurationError(
            f"An optimizer with an update rule was expected, one of {', '.join(_CLASSES)} without gradient accumulation. "
            f"Received: optimizer={type(optimizer).__name__}. Host it as itself."
        )
    return rule
