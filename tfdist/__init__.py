"""tfdist: switch the distributed algorithm of a Keras script by changing one line.

The names below are loaded on first use: `import tfdist` itself imports neither TensorFlow nor the native core. All it
does is to make an uncaught ConfigurationError one line on stderr instead of a traceback.
"""

from tfdist import refusal

__version__ = "0.1.0"

refusal.install()

_EXPORTS = {
    "RingAllReduceStrategy": "tfdist.strategies",
    "RingAllReduce": "tfdist.strategies",
    "AsyncSGDStrategy": "tfdist.strategies",
    "SyncSGDStrategy": "tfdist.strategies",
    "ParameterServerStrategy": "tfdist.strategies",
    "strategy": "tfdist.strategies",
    "use": "tfdist.strategies",
    "rank": "tfdist.cluster",
    "world_size": "tfdist.cluster",
    "size": "tfdist.cluster",
    "local_rank": "tfdist.cluster",
    "is_chief": "tfdist.cluster",
}
_SUBMODULES = (
    "callbacks",
    "checkpoint",
    "cluster",
    "collectives",
    "comm",
    "data",
    "errors",
    "launch",
    "strategies",
    "testing",
)

__all__ = [*_EXPORTS, *_SUBMODULES, "__version__"]


def __getattr__(name):
    import importlib

    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"tfdist.{name}")
    raise AttributeError(f"module 'tfdist' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
