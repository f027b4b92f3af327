"""The `tf.distribute` faces of tfdist: switch the algorithm of a Keras script by one line."""

import importlib

_EXPORTS = {
    "RingAllReduceStrategy": "ring",
    "RingAllReduce": "ring_all_reduce",
    "AsyncSGDStrategy": "async_sgd",
    "SyncSGDStrategy": "sync_sgd",
    "ParameterServerStrategy": "parameter_server",
    "strategy": "registry",
    "use": "registry",
}

__all__ = list(_EXPORTS)


def __getattr__(name):
    if name in _EXPORTS:
        importlib.import_module("tfdist.strategies.requirements").check_tensorflow()
        return getattr(importlib.import_module(f"tfdist.strategies.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'tfdist.strategies' has no attribute {name!r}")
