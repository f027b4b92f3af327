"""Temporary folders of tests, the same on every worker, as a user's paths would be.

A test that saves to `tempfile.mkdtemp()` would look on each worker in a folder of its own, where only the chief writes.
"""

import os
import shutil
import sys
import tempfile

_state = {"root": None, "test": "", "count": 0, "strategy": None}
_mkdtemp, _rmtree, _unlink = tempfile.mkdtemp, shutil.rmtree, os.remove


def install(root, strategy):
    """Makes `tempfile` hand out folders below `root` to code of tests; None changes nothing."""
    if root is not None and strategy.world_size > 1:
        _state.update(root=root, strategy=strategy)
        tempfile.mkdtemp, shutil.rmtree, os.remove = _make, _remove, _remove_file


def enter(test):
    """Starts the count of `test`'s folders; None: each worker gets its own."""
    _state.update(test=test, count=0)


def _make(*args, **kwargs):
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__") == "tempfile":
        frame = frame.f_back
    if not _is_shared(frame):
        return _mkdtemp(*args, **kwargs)
    _state["count"] += 1
    path = os.path.join(_state["root"], _state["test"].replace("::", "."), str(_state["count"]))
    os.makedirs(path, exist_ok=True)
    return path


def _remove(path, *args, **kwargs):
    """Leaves the folders handed out: another worker may still read there. Who gave `root` removes it."""
    above = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    if above != os.path.abspath(_state["root"]):
        _rmtree(path, *args, **kwargs)


def _remove_file(path, *args, **kwargs):
    """Removes once, when everybody has come here: all workers run the test's line."""
    if not _is_shared(sys._getframe(1)):
        return _unlink(path, *args, **kwargs)
    _state["strategy"].worker_group.barrier(name="before removing")
    if _state["strategy"].is_chief:
        _unlink(path, *args, **kwargs)
    _state["strategy"].worker_group.barrier(name="after removing")


def _is_shared(frame):
    return _state["test"] is not None and frame.f_globals.get("__name__", "").endswith(("_test", ".test_case"))
