"""Loads the native core and describes its C interface (native/tfdist.h) to ctypes."""

import ctypes
import functools
import os
import sys
from pathlib import Path

from tfdist.errors import ConfigurationError

FOLDER = Path(__file__).resolve().parent.parent / "native"
SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"

DTYPES = {"byte": 0, "float32": 1, "float64": 2, "bfloat16": 3, "float16": 4, "int32": 5, "int64": 6}
REDUCTIONS = {"sum": 0, "mean": 1, "min": 2, "max": 3, "product": 4}

OK, TIMEOUT, LOST, MISMATCH, CLOSED, INVALID = range(6)
RAISED = 9
BELOW_MINIMUM = 10


class Span(ctypes.Structure):
    """A stretch of elements in memory (tfdist_span)."""

    _fields_ = [("data", ctypes.c_void_p), ("elements", ctypes.c_int64)]


class Operation(ctypes.Structure):
    """What is to be started (tfdist_operation)."""

    _fields_ = [
        ("plan", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("wire_dtype", ctypes.c_int32),
        ("reduce", ctypes.c_int32),
        ("scale", ctypes.c_double),
        ("divisor", ctypes.c_double),
        ("channel", ctypes.c_uint64),
        ("step", ctypes.c_int64),
        ("description", ctypes.c_char_p),
        ("work", ctypes.c_void_p),
        ("elements", ctypes.c_int64),
        ("chunk_offsets", ctypes.POINTER(ctypes.c_int64)),
        ("input_offset", ctypes.c_int64),
    ]


class GroupOptions(ctypes.Structure):
    """What a group is made of (tfdist_group_options)."""

    _fields_ = [
        ("rank", ctypes.c_int32),
        ("world_size", ctypes.c_int32),
        ("sockets", ctypes.POINTER(ctypes.c_int)),
        ("sockets_per_peer", ctypes.c_int32),
        ("segments", ctypes.POINTER(ctypes.c_int)),
        ("generation", ctypes.c_uint32),
        ("timeout_seconds", ctypes.c_double),
        ("is_eager", ctypes.c_int32),
        ("is_crowded", ctypes.c_int32),
        ("is_elastic", ctypes.c_int32),
        ("slots", ctypes.POINTER(ctypes.c_int32)),
        ("has_empty_slots", ctypes.c_int32),
        ("heartbeat_seconds", ctypes.c_double),
    ]


_SPANS = ctypes.POINTER(Span)
_TABLE = ctypes.POINTER(ctypes.c_int32)
_SIGNATURES = {
    "tfdist_group_create": (ctypes.c_void_p, [ctypes.POINTER(GroupOptions)]),
    "tfdist_segment_create": (ctypes.c_int32, [ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p]),
    "tfdist_group_release": (None, [ctypes.c_void_p]),
    "tfdist_group_set_timeout": (None, [ctypes.c_void_p, ctypes.c_double]),
    "tfdist_group_id": (ctypes.c_int64, [ctypes.c_void_p]),
    "tfdist_group_find": (ctypes.c_void_p, [ctypes.c_int64]),
    "tfdist_group_copied_bytes": (ctypes.c_int64, [ctypes.c_void_p]),
    "tfdist_group_close": (None, [ctypes.c_void_p, ctypes.c_char_p]),
    "tfdist_group_load_plan": (ctypes.c_int32, [ctypes.c_void_p, _TABLE, ctypes.c_int32, ctypes.c_int32]),
    "tfdist_group_load_next_plan": (ctypes.c_int32, [ctypes.c_void_p, _TABLE, ctypes.c_int32, ctypes.c_int32]),
    "tfdist_group_set_commit_plan": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_int32]),
    "tfdist_group_await_failure": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_double]),
    "tfdist_group_report": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]),
    "tfdist_group_prepare": (ctypes.c_int32, [ctypes.c_void_p, ctypes.POINTER(GroupOptions)]),
    "tfdist_group_reform": (
        ctypes.c_int32,
        [
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_uint64),
            ctypes.POINTER(ctypes.c_int64),
            ctypes.c_int32,
            ctypes.c_int32,
        ],
    ),
    "tfdist_group_give_up": (None, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p]),
    "tfdist_group_committed_generation": (ctypes.c_uint32, [ctypes.c_void_p]),
    "tfdist_group_step_generation": (ctypes.c_uint32, [ctypes.c_void_p]),
    "tfdist_group_trust": (None, [ctypes.c_void_p]),
    "tfdist_group_set_flag": (None, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64]),
    "tfdist_group_learn_flag": (None, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64]),
    "tfdist_group_flag": (ctypes.c_int64, [ctypes.c_void_p, ctypes.c_int32]),
    "tfdist_group_watch": (None, [ctypes.c_void_p, ctypes.c_double]),
    "tfdist_group_drop": (None, [ctypes.c_void_p, ctypes.c_int32]),
    "tfdist_group_set_fault": (None, [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_int32]),
    "tfdist_start": (ctypes.c_int64, [ctypes.c_void_p, ctypes.POINTER(Operation), _SPANS, ctypes.c_int32, _SPANS]),
    "tfdist_run": (ctypes.c_int64, [ctypes.c_void_p, ctypes.POINTER(Operation), ctypes.c_double]),
    "tfdist_wait": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int32]),
    "tfdist_finish": (ctypes.c_int32, [ctypes.c_void_p, ctypes.c_int64, _SPANS, ctypes.c_int32]),
    "tfdist_instruction_set": (ctypes.c_char_p, []),
    "tfdist_measure_copy_seconds_per_byte": (ctypes.c_double, []),
    "tfdist_measure_reduce_seconds_per_byte": (ctypes.c_double, []),
    "tfdist_group_error": (
        ctypes.c_int32,
        [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32), ctypes.c_char_p, ctypes.c_int64],
    ),
}


def path(name):
    """Returns where the library `name` ("core" or "tensorflow") belongs."""
    return Path(os.environ.get("TFDIST_NATIVE_DIR", FOLDER)) / f"libtfdist_{name}{SUFFIX}"


@functools.cache
def core():
    """Returns the loaded core library.

    Raises:
      ConfigurationError: it is missing or does not load; the text says why and what to do.
    """
    library_path = path("core")
    try:
        library = ctypes.CDLL(str(library_path))
    except OSError as error:
        raise ConfigurationError(_advice(library_path, error)) from error
    return declare(library, _SIGNATURES)


def declare(library, signatures):
    """Describes functions of the core to ctypes and returns the library.

    Args:
      library: from `core()`.
      signatures: name -> (type of the result, types of the arguments).

    Raises:
      ConfigurationError: it lacks one of them.
    """
    for name, (result, arguments) in signatures.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            why = f"it lacks {name}, so it is of another version"
            raise ConfigurationError(_advice(path("core"), why)) from error
        function.restype, function.argtypes = result, arguments
    return library


def _advice(library_path, error):
    if not library_path.exists():
        why, remedy = "the file does not exist", "It is built when tfdist is installed"
    else:
        why, remedy = str(error), "It was built for another machine or damaged"
    return (
        f"tfdist's native library was expected at {library_path}. Received: {why}. {remedy}: install g++ "
        "(Debian, Ubuntu: apt install g++), then run `pip install --force-reinstall --no-deps tfdist` from where you "
        "got it, or `python setup.py build_native --inplace` in a checkout."
    )
