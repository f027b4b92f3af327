"""An all-reduce that is set up once and run many times, and what its arguments may be."""

import ctypes
import functools

import numpy as np

from tfdist.comm import library
from tfdist.errors import ConfigurationError

WIRE_DTYPES = ("bfloat16", "float16")


class PreparedAllReduce:
    """Reduces one array in place at every call; made by `Group.prepare_all_reduce`, which says more.

    A call blocks until this rank has its result, at most the group's timeout, and raises as `Group.all_reduce` does.
    Everything is ready beforehand: a call is one into the native core.

    Args:
      group: the `Group`.
      work: the array, flat.
      operation: the `library.Operation` on it; None where there is one rank only and nothing to do.
    """

    def __init__(self, group, work, operation):
        self._group, self._work = group, work
        self._operation = operation  # the core reads it at every call
        self._reference = None if operation is None else ctypes.byref(operation)
        self._run = None if operation is None else library.core().tfdist_run
        self._native = group.native

    def __call__(self):
        if self._run is None:
            return
        group = self._group
        ticket = self._run(self._native, self._reference, group.first_wait_seconds)
        if ticket:
            group.resume(ticket, self._work, group.timeout - group.first_wait_seconds)


def reducible(dtype, op):
    """Returns the name of a NumPy dtype that `op` can reduce.

    Raises:
      ConfigurationError: it cannot, or there is no such op.
    """
    if op not in library.REDUCTIONS:
        raise ConfigurationError(
            f"op is expected to be one of {', '.join(library.REDUCTIONS)}. Received: op={op!r}. Pick one of them."
        )
    if _name(dtype) not in library.DTYPES:
        names = ", ".join(name for name in library.DTYPES if name != "byte")
        raise ConfigurationError(
            f"array is expected to be of a dtype that can be reduced ({names}). Received: dtype={dtype.name}. Cast it first."
        )
    return _name(dtype)


def wire_number(wire_dtype, dtype):
    """Returns the native number of what an array of `dtype`, a name, travels as.

    Raises:
      ConfigurationError: it cannot travel as `wire_dtype`.
    """
    if wire_dtype is None:
        return library.DTYPES["byte"]  # as it is
    if wire_dtype not in WIRE_DTYPES or dtype != "float32":
        raise ConfigurationError(
            f"wire_dtype is expected to be None, or {' or '.join(map(repr, WIRE_DTYPES))} for an array of float32. "
            f"Received: wire_dtype={wire_dtype!r} for {dtype}. Leave it out, or cast the array."
        )
    return library.DTYPES[wire_dtype]


def in_place(array):
    """Returns a flat view of an array.

    Raises:
      ConfigurationError: it is none that could be changed in place.
    """
    if not (isinstance(array, np.ndarray) and array.flags.c_contiguous and array.flags.writeable):
        kind = f"{text(array)}, strides={array.strides}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ConfigurationError(
            f"array is expected to be a NumPy array, C-contiguous and writable. Received: {kind}. Pass np.array(array)."
        )
    return array.reshape(-1)


def bytes_of(array):
    """Returns a flat view and the native dtype under which it merely moves."""
    if array.dtype.hasobject:
        raise ConfigurationError(
            f"array is expected to have a dtype of fixed size. Received: dtype={array.dtype}. Encode it as bytes first."
        )
    return array.reshape(-1).view(np.uint8), "byte"


def text(array):
    """Returns e.g. "float32[2, 3]"."""
    return f"{_name(array.dtype)}{list(array.shape)}"


@functools.cache
def _name(dtype):  # NumPy takes microseconds to make it
    return dtype.name
