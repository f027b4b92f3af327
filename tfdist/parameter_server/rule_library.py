"""The native update rules (native/parameter_server/rule.h) on NumPy arrays."""

import ctypes
import functools

import numpy as np

from tfdist.comm.library import DTYPES, OK, core, declare
from tfdist.errors import ConfigurationError
from tfdist.parameter_server.rules import FLAGS, PARAMETERS

NUM_SCALARS = 4
_FLAG_BITS = {"nesterov": 1, "amsgrad": 2, "centered": 4}


class NativeRule(ctypes.Structure):
    """A rule with its hyperparameters (tfdist_rule)."""

    _fields_ = [("kind", ctypes.c_int32), ("flags", ctypes.c_int32), ("parameters", ctypes.c_double * 6)]


_RULE = ctypes.POINTER(NativeRule)
_DOUBLES = ctypes.POINTER(ctypes.c_double)
_UPDATE = [_RULE, ctypes.c_int32, ctypes.c_double, ctypes.c_double, ctypes.c_int64, _DOUBLES, ctypes.c_void_p]
_ARRAYS = ctypes.POINTER(ctypes.c_void_p)
_SIGNATURES = {
    "tfdist_rule_num_slots": (ctypes.c_int32, [_RULE]),
    "tfdist_rule_initial_slot_value": (ctypes.c_double, [_RULE, ctypes.c_int32]),
    "tfdist_rule_touches_only_rows": (ctypes.c_int32, [_RULE, ctypes.c_double]),
    "tfdist_rule_is_linear_in_gradient": (ctypes.c_int32, [_RULE]),
    "tfdist_rule_initialize": (None, [_RULE, _DOUBLES]),
    "tfdist_rule_apply": (ctypes.c_int32, [*_UPDATE, _ARRAYS, ctypes.c_void_p, ctypes.c_int64]),
    "tfdist_rule_apply_rows": (
        ctypes.c_int32,
        [*_UPDATE, _ARRAYS, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_int32],
    ),
}


@functools.cache
def library():
    """Returns the core with the functions of the rules described."""
    return declare(core(), _SIGNATURES)


def native(rule):
    """Returns the `NativeRule` of a `rules.Rule`."""
    flags = sum(_FLAG_BITS[flag] for flag in FLAGS.get(rule.kind, ()) if flag in rule.flags)
    return NativeRule(list(PARAMETERS).index(rule.kind), flags, (ctypes.c_double * 6)(*rule.parameters))


def touches_only_rows(rule, weight_decay=0.0):
    """Whether, in Keras's semantics, a gradient of some rows leaves the other rows and their slots as they are."""
    return bool(library().tfdist_rule_touches_only_rows(native(rule), weight_decay))


def is_linear_in_gradient(rule):
    """Whether, in Keras's semantics, rows with equal index may be summed before they travel.

    The others sum the squares (Adamax: absolute values) of such rows as well. In lazy updates they always may.
    """
    return bool(library().tfdist_rule_is_linear_in_gradient(native(rule)))


def make_slots(rule, shape, dtype):
    """Returns new slots of a tensor at their initial values."""
    described = native(rule)
    values = (library().tfdist_rule_initial_slot_value(described, i) for i in range(len(rule.slot_names)))
    return [np.full(shape, value, dtype) for value in values]


def make_scalars(rule):
    """Returns the new state of a tensor besides its slots: `NUM_SCALARS` float64 (Nadam's; tfdist.h describes them)."""
    scalars = np.zeros(NUM_SCALARS)
    library().tfdist_rule_initialize(native(rule), scalars.ctypes.data_as(_DOUBLES))
    return scalars


def apply(rule, theta, slots, gradient, *, learning_rate, t, scalars, weight_decay=0.0):
    """Updates `theta`, `slots` and `scalars` in place with one gradient.

    Args:
      rule: a `rules.Rule`.
      theta: parameters, a contiguous float32 or float64 array.
      slots: arrays like it, from `make_slots`.
      gradient: an array like it.
      learning_rate: of this update.
      t: which update this is, from 1: Keras's iterations + 1.
      scalars: from `make_scalars`.
      weight_decay: Keras's; 0 for none.

    Raises:
      ConfigurationError: arrays that do not fit each other or the rule, or t < 1.
    """
    _check_arrays(rule, theta, slots, gradient, t, scalars)
    if gradient.shape != theta.shape:
        raise ConfigurationError(
            f"The gradient was expected to have the parameters' shape {theta.shape}. Received: gradient.shape="
            f"{gradient.shape}. Push the gradient of this tensor."
        )
    arguments = _update_arguments(rule, theta, slots, learning_rate, weight_decay, t, scalars)
    _check_code(library().tfdist_rule_apply(*arguments, gradient.ctypes.data, theta.size))


def apply_rows(rule, theta, slots, rows, values, *, learning_rate, t, scalars, weight_decay=0.0, is_lazy=False):
    """Updates with a gradient of whole rows, `values[i]` that of row `rows[i]`; an index may occur several times.

    Not lazy, all moves as in Keras on TensorFlow with `tf.IndexedSlices`: rows without a gradient have the gradient 0. Lazy,
    rows with equal index are summed, and no other rows move.

    Args:
      rows: int64, shape (n,).
      values: of theta's dtype, shape (n, *theta.shape[1:]).
      The others are those of `apply`.

    Raises:
      ConfigurationError: as `apply`, or an index outside of theta.
    """
    _check_arrays(rule, theta, slots, values, t, scalars)
    if rows.dtype != np.int64 or rows.ndim != 1 or values.shape != (len(rows), *theta.shape[1:]) or theta.ndim == 0:
        raise ConfigurationError(
            f"int64 indices and one row of shape {theta.shape[1:]} for each were expected. Received: rows of {rows.dtype} and "
            f"shape {rows.shape}, values.shape={values.shape}. Push the rows of this tensor."
        )
    if len(rows) and not (rows.min() >= 0 and rows.max() < len(theta)):
        raise ConfigurationError(
            f"Indices of rows were expected in 0 ... {len(theta) - 1}. Received: {rows.min()} ... {rows.max()}. Check the ids."
        )
    rows = np.ascontiguousarray(rows)
    row_elements = theta[:1].size if len(theta) else 0
    arguments = _update_arguments(rule, theta, slots, learning_rate, weight_decay, t, scalars)
    sizes = (len(rows), row_elements, len(theta), is_lazy)
    _check_code(library().tfdist_rule_apply_rows(*arguments, rows.ctypes.data, values.ctypes.data, *sizes))


def _check_arrays(rule, theta, slots, gradient, t, scalars):
    if not all(isinstance(array, np.ndarray) for array in (theta, gradient, *slots, scalars)):
        raise ConfigurationError(
            f"NumPy arrays were expected, to be updated in place. Received: theta of {type(theta).__name__}, gradient of "
            f"{type(gradient).__name__}. Wrap single numbers by np.array."
        )
    if theta.dtype not in (np.float32, np.float64):
        raise ConfigurationError(
            f"Parameters were expected to be float32 or float64. Received: dtype={theta.dtype}. Host the optimizer as itself."
        )
    if len(slots) != len(rule.slot_names) or any(slot.shape != theta.shape for slot in slots):
        raise ConfigurationError(
            f"Slots {rule.slot_names} of the parameters' shape {theta.shape} were expected. Received: shapes "
            f"{[slot.shape for slot in slots]}. Take them from make_slots."
        )
    arrays = (theta, gradient, *slots)
    if any(array.dtype != theta.dtype or not array.flags.c_contiguous for array in arrays):
        raise ConfigurationError(
            f"Contiguous arrays of {theta.dtype} were expected. Received: dtypes {[str(array.dtype) for array in arrays]}. "
            "Convert the gradient and the slots to the parameters' dtype."
        )
    if t < 1:
        raise ConfigurationError(f"Updates are counted from t=1. Received: t={t}. Give Keras's iterations + 1.")
    if scalars.dtype != np.float64 or scalars.shape != (NUM_SCALARS,):
        raise ConfigurationError(
            f"{NUM_SCALARS} float64 scalars were expected. Received: {scalars.dtype} of shape {scalars.shape}. "
            "Take them from make_scalars."
        )


def _update_arguments(rule, theta, slots, learning_rate, weight_decay, t, scalars):
    addresses = (ctypes.c_void_p * 3)(*[slot.ctypes.data for slot in slots])
    state = scalars.ctypes.data_as(_DOUBLES)
    dtype = DTYPES[str(theta.dtype)]
    return native(rule), dtype, learning_rate, weight_decay, t, state, theta.ctypes.data, addresses


def _check_code(code):
    if code != OK:
        raise ConfigurationError(
            f"A valid update was expected. Received: one that the native core refuses with code {-code}. See tfdist.h."
        )
