"""The server's and the client's part of the native core's C interface (native/tfdist.h), for ctypes."""

import ctypes
import functools

from tfdist.comm import library
from tfdist.comm.library import Span
from tfdist.parameter_server.rule_library import NativeRule

ASYNCHRONOUS, BOUNDED, SYNCHRONOUS = range(3)
STALE, NOT_FINITE, SERVER_LOST = 6, 7, 8


class Shard(ctypes.Structure):
    """A tensor, or a stretch of one, on a server (tfdist_shard)."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int32),
        ("decays", ctypes.c_int32),
        ("is_hosted", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("elements", ctypes.c_int64),
        ("row_elements", ctypes.c_int64),
        ("rule", NativeRule),
    ]


class HostedGradient(ctypes.Structure):
    """A gradient for an optimizer that is hosted as itself (tfdist_hosted_gradient)."""

    _fields_ = [
        ("shard", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
    ]


HOST = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_void_p,
    ctypes.POINTER(HostedGradient),
    ctypes.c_int32,
    ctypes.c_double,
    ctypes.c_void_p,
    ctypes.c_int64,
)


class StoreOptions(ctypes.Structure):
    """How a store is updated (tfdist_store_options)."""

    _fields_ = [
        ("mode", ctypes.c_int32),
        ("num_workers", ctypes.c_int32),
        ("staleness_bound", ctypes.c_int32),
        ("backup_workers", ctypes.c_int32),
        ("is_lazy", ctypes.c_int32),
        ("num_step_weights", ctypes.c_int32),
        ("recovers", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("step_weights", ctypes.POINTER(ctypes.c_double)),
        ("weight_decay", ctypes.c_double),
        ("average_momentum", ctypes.c_double),
        ("average_overwrites", ctypes.c_int64),
        ("compensation", ctypes.c_double),
        ("compensation_decay", ctypes.c_double),
        ("host", HOST),
        ("host_context", ctypes.c_void_p),
    ]


class WorkerRecord(ctypes.Structure):
    """What a server knows about a worker (tfdist_worker_record)."""

    _fields_ = [
        ("pushes", ctypes.c_int64),
        ("dropped", ctypes.c_int64),
        ("bytes_received", ctypes.c_int64),
        ("bytes_sent", ctypes.c_int64),
        ("sequence", ctypes.c_uint64),
        ("waited_seconds", ctypes.c_double),
        ("seconds", ctypes.c_double),
        ("num_staleness", ctypes.c_int32),
    ]


class Part(ctypes.Structure):
    """A stretch of a tensor that one server keeps (tfdist_client_part)."""

    _fields_ = [
        ("server", ctypes.c_int32),
        ("shard", ctypes.c_int32),
        ("begin", ctypes.c_int64),
        ("elements", ctypes.c_int64),
    ]


class Tensor(ctypes.Structure):
    """A tensor as a worker sees it (tfdist_client_tensor)."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int32),
        ("num_parts", ctypes.c_int32),
        ("row_elements", ctypes.c_int64),
        ("parts", ctypes.POINTER(Part)),
    ]


class ClientStore(ctypes.Structure):
    """A store as a worker sees it (tfdist_client_store)."""

    _fields_ = [
        ("tensors", ctypes.POINTER(Tensor)),
        ("num_tensors", ctypes.c_int32),
        ("numbers", ctypes.POINTER(ctypes.c_int32)),
        ("windows", ctypes.POINTER(ctypes.c_int32)),
        ("window_bytes", ctypes.POINTER(ctypes.c_int64)),
        ("sequence", ctypes.c_uint64),
        ("num_workers", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class ExchangeDense(ctypes.Structure):
    """One tensor of an exchange (tfdist_exchange_dense)."""

    _fields_ = [
        ("tensor", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("gradient", ctypes.c_void_p),
        ("current", ctypes.c_void_p),
        ("fresh", ctypes.c_void_p),
    ]


class ExchangeRows(ctypes.Structure):
    """The touched rows of one tensor of an exchange (tfdist_exchange_rows)."""

    _fields_ = [
        ("tensor", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("indices", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("current", ctypes.c_void_p),
        ("fresh", ctypes.c_void_p),
    ]


class Exchange(ctypes.Structure):
    """A push and a pull (tfdist_exchange)."""

    _fields_ = [
        ("dense", ctypes.POINTER(ExchangeDense)),
        ("rows", ctypes.POINTER(ExchangeRows)),
        ("num_dense", ctypes.c_int32),
        ("num_rows", ctypes.c_int32),
        ("learning_rate", ctypes.c_double),
        ("weight", ctypes.c_double),
        ("is_sum", ctypes.c_int32),
        ("is_pushed", ctypes.c_int32),
        ("prefetch", ctypes.c_int32),
        ("is_synchronous", ctypes.c_int32),
        ("not_finite", ctypes.c_int32),
        ("offers", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class Result(ctypes.Structure):
    """What came of an exchange (tfdist_exchange_result)."""

    _fields_ = [
        ("updates", ctypes.c_int64),
        ("staleness", ctypes.c_int64),
        ("waited_seconds", ctypes.c_double),
        ("is_dropped", ctypes.c_int32),
        ("is_skipped", ctypes.c_int32),
        ("server", ctypes.c_int32),
        ("culprit", ctypes.c_int32),
        ("text", ctypes.c_char * 976),
    ]


_SERVER = _CLIENT = ctypes.c_void_p
_INT, _LONG, _REAL = ctypes.c_int32, ctypes.c_int64, ctypes.c_double
_RESULT = ctypes.POINTER(Result)
_SIGNATURES = {
    "tfdist_server_create": (_SERVER, [_REAL]),
    "tfdist_server_release": (None, [_SERVER]),
    "tfdist_server_add_store": (_INT, [_SERVER, ctypes.POINTER(StoreOptions), ctypes.POINTER(Shard), _INT]),
    "tfdist_server_share_window": (_INT, [_SERVER, _INT, _INT, _INT]),
    "tfdist_server_serve": (_INT, [_SERVER, _INT, _INT, ctypes.c_uint64]),
    "tfdist_server_join": (None, [_SERVER, _INT, _INT, ctypes.c_uint64]),
    "tfdist_server_begin_generation": (None, [_SERVER, _INT, ctypes.c_uint64, _LONG]),
    "tfdist_server_generation": (ctypes.c_uint64, [_SERVER, _INT]),
    "tfdist_server_updates": (_LONG, [_SERVER, _INT]),
    "tfdist_server_set_active": (None, [_SERVER, _INT, _INT, ctypes.c_uint64, _INT]),
    "tfdist_server_array": (ctypes.c_void_p, [_SERVER, _INT, _INT, _INT]),
    "tfdist_server_scalars": (ctypes.POINTER(_REAL), [_SERVER, _INT, _INT]),
    "tfdist_server_version": (_LONG, [_SERVER, _INT, _INT]),
    "tfdist_server_save": (_LONG, [_SERVER, _INT, _INT, ctypes.c_void_p, _LONG]),
    "tfdist_server_load": (_INT, [_SERVER, _INT, _INT, ctypes.c_char_p, _LONG]),
    "tfdist_server_supersede": (None, [_SERVER, _INT, _INT]),
    "tfdist_server_await_offers": (None, [_SERVER, _INT, _REAL]),
    "tfdist_server_hold_host": (None, [_SERVER, _INT, _INT]),
    "tfdist_server_record": (None, [_SERVER, _INT, _INT, ctypes.POINTER(WorkerRecord), ctypes.POINTER(_LONG), _INT]),
    "tfdist_client_create": (_CLIENT, [_INT, _INT, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(_INT), _REAL]),
    "tfdist_client_recover": (_INT, [_CLIENT, _REAL, _INT]),
    "tfdist_client_reconnect": (None, [_CLIENT, _INT, ctypes.POINTER(_INT), ctypes.POINTER(_INT), _INT]),
    "tfdist_client_is_lost": (_INT, [_CLIENT, _INT]),
    "tfdist_client_set_mirror": (None, [_CLIENT, _CLIENT]),
    "tfdist_client_id": (_LONG, [_CLIENT]),
    "tfdist_client_release": (None, [_CLIENT]),
    "tfdist_client_close": (None, [_CLIENT]),
    "tfdist_client_add_store": (_INT, [_CLIENT, ctypes.POINTER(ClientStore)]),
    "tfdist_client_begin_generation": (None, [_CLIENT, _INT, ctypes.c_uint64, _LONG]),
    "tfdist_client_exchange": (_INT, [_CLIENT, _INT, ctypes.POINTER(Exchange), _RESULT]),
    "tfdist_client_flush": (_INT, [_CLIENT, _INT, ctypes.POINTER(Span), _INT, _RESULT]),
    "tfdist_client_transfer": (
        _INT,
        [_CLIENT, _INT, _INT, _INT, ctypes.POINTER(Span), ctypes.POINTER(Span), _INT, _RESULT],
    ),
    "tfdist_client_pull_rows": (
        _INT,
        [_CLIENT, _INT, _INT, ctypes.c_void_p, _LONG, ctypes.c_void_p, _RESULT],
    ),
}


@functools.cache
def core():
    """Returns the core with the functions of the parameter server described."""
    return library.declare(library.core(), _SIGNATURES)
