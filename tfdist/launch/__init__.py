"""Starts the workers of a job and looks after them: `tfdist run`, and `local.run` for notebooks."""

import importlib

__all__ = ["local"]


def __getattr__(name):
    if name == "local":
        return importlib.import_module("tfdist.launch.local")
    raise AttributeError(f"module 'tfdist.launch' has no attribute {name!r}")
