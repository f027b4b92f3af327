"""From the native core's failure codes to tfdist's exceptions."""

import contextlib
import ctypes
import re

from tfdist.comm import library
from tfdist.errors import (
    BelowMinimumWorkersError,
    CollectiveTimeoutError,
    ConfigurationError,
    MismatchError,
    NonFiniteGradientError,
    ServerLostError,
    StaleUpdateError,
    TransportError,
    WorkerLostError,
)

_REMEDIES = {
    library.TIMEOUT: "See what that rank does; if it is only slow, raise TFDIST_TIMEOUT or timeout= (seconds).",
    library.LOST: "Look at that rank's own output for the cause, then restart the job.",
    library.RAISED: "Look at that rank's own output for the cause, then restart the job.",
    library.MISMATCH: "Run the same script, model and data pipeline on every rank, and let every rank take every step.",
    library.BELOW_MINIMUM: "Start the job again with DistributedCheckpoint to go on from there, or lower --min-workers.",
    library.CLOSED: "Make a new group or strategy.",
    library.INVALID: "This is a fault of tfdist; please report it.",
}
_CLASSES = {
    library.TIMEOUT: CollectiveTimeoutError,
    library.LOST: WorkerLostError,
    library.RAISED: WorkerLostError,
    library.MISMATCH: MismatchError,
    library.BELOW_MINIMUM: BelowMinimumWorkersError,
    library.CLOSED: TransportError,
    library.INVALID: ConfigurationError,
}
# Those of the parameter server, whose texts are complete.
_OF_SERVERS = {kind.__name__: kind for kind in (NonFiniteGradientError, ServerLostError, StaleUpdateError)}
# How the TensorFlow operations spell a failure in the text of a tf.errors exception.
_IN_TENSORFLOW = re.compile(r"\[tfdist (\w+) peer=(-?\d+)\] (.*?)(?:\n|\s*\[\[|\s*\[Op:|$)", re.DOTALL)
_TEXT_BYTES = 1 << 17


def make_error(code, peer, text):
    """Returns the exception for a native failure: its code, the peer it is about (or -1) and its text."""
    message = f"{text.rstrip('. ')}. {_REMEDIES[code]}"
    if code in (library.LOST, library.RAISED):
        return WorkerLostError(message, rank=peer)
    return _CLASSES[code](message)


def raise_failure(native, code, rank):
    """Raises the group's first failure, or what `code` says where there is none."""
    peer, text = ctypes.c_int32(-1), ctypes.create_string_buffer(_TEXT_BYTES)
    first = library.core().tfdist_group_error(native, ctypes.byref(peer), text, _TEXT_BYTES)
    if first == library.OK or code == library.INVALID:
        raise make_error(code, -1, f"the native core refused an operation on rank {rank}")
    raise make_error(first, peer.value, text.value.decode(errors="replace"))


def from_tensorflow(error):
    """Returns the tfdist exception that a `tf.errors.OpError` carries in its text, or None."""
    found = _IN_TENSORFLOW.search(str(error))
    if not found:
        return None
    if found[1] in _OF_SERVERS:
        return _OF_SERVERS[found[1]](found[3])
    codes = {kind.__name__: code for code, kind in reversed(_CLASSES.items())}
    return make_error(codes[found[1]], int(found[2]), found[3])


@contextlib.contextmanager
def translated():
    """Turns the failures of tfdist's operations that TensorFlow raises in here into tfdist's exceptions."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        failure = from_tensorflow(error)
        if failure is None:
            raise
        raise failure from error
