"""Only the chief writes; the others wait until it has."""

import collections
import hashlib
import threading
import time

import keras
from absl import logging

from tfdist import cluster
from tfdist.cluster.store import StoreClient
from tfdist.strategies import keras_servers
from tfdist.strategies.replica import AbstractReplicaStrategy
from tfdist.testing import faults

_CHIEF_ONLY = ("TensorBoard", "CSVLogger", "RemoteMonitor", "ProgbarLogger")
_LOOK_SECONDS = 0.2
_lock = threading.Lock()  # guards _counts
_counts = collections.Counter()


def save(original, model, *args, **kwargs):
    """Stands in for `Model.save`, `Model.save_weights` and `Model.export`.

    A worker that is not the chief waits until the chief has finished its save of the same path, the n-th one, so that
    it may load the file at once. The chief never waits: `if tfdist.is_chief(): model.save(path)` works too.
    """
    strategy = model.distribute_strategy
    if not isinstance(strategy, AbstractReplicaStrategy):
        return original(model, *args, **kwargs)
    if strategy.uses_servers and strategy.is_chief:
        keras_servers.fetch_for_saving(strategy, model)
    if strategy.world_size == 1:
        return original(model, *args, **kwargs)
    path = str(args[0] if args else kwargs.get("filepath"))
    with _lock:
        _counts[path] += 1
        event = f"tfdist/saved/{hashlib.sha256(path.encode()).hexdigest()}/{_counts[path]}"
    if strategy.elastic is not None and (strategy.elastic.is_passing or strategy.elastic.is_joining):
        return None
    if not strategy.is_chief:
        logging.log_first_n(logging.INFO, "Rank %d does not write %s: the chief does.", 1, strategy.rank, path)
        if _await(strategy, event):
            return None
    faults.reach("saving")
    with strategy.extended.alone():  # Keras makes an optimizer anew to write down its configuration
        result = original(model, *args, **kwargs)
    _announce(strategy, event)
    return result


def _announce(strategy, event):
    with _store(strategy) as store:
        store.set(event, b"done")


def _await(strategy, event):
    """Waits until the chief has saved; False where it was lost before, and this worker is the chief now."""
    deadline = time.monotonic() + strategy.worker_group.timeout
    with _store(strategy) as store:
        while strategy.elastic is not None:
            try:
                store.get(event, timeout=min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic())))
                return True
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise
                if strategy.is_chief:
                    return False
        store.get(event, timeout=strategy.worker_group.timeout)
        return True


def _store(strategy):
    place = cluster.current()
    if place.world_size != strategy.world_size:
        return _NoStore()  # a group made by hand: nobody to ask, files appear when they appear
    return StoreClient(place.store_address, place.secret)


class _NoStore:
    def set(self, key, value):
        pass

    def get(self, key, timeout):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def callbacks_of(strategy, callbacks):
    """Returns the callbacks that this worker runs: all on the chief, elsewhere none that writes by itself."""
    if strategy.elastic is not None:
        return [_while_chief(strategy, callback) for callback in callbacks]
    if strategy.is_chief:
        return callbacks
    kept = []
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            kept.append(_RestoreOnly(callback))
        elif not any(base.__name__ in _CHIEF_ONLY for base in type(callback).__mro__):
            kept.append(callback)
    return kept


def _while_chief(strategy, callback):
    """Where the chief may be lost every worker has all callbacks, and those that write do so on the one that is the chief."""
    is_backup = isinstance(callback, keras.callbacks.BackupAndRestore)
    if is_backup or any(base.__name__ in _CHIEF_ONLY for base in type(callback).__mro__):
        return WhileChief(strategy, callback, begins_anyway=is_backup)
    return callback


class WhileChief(keras.callbacks.Callback):
    """Hands on what happens while this worker is the chief; it begins when that becomes so.

    Args:
      strategy: the strategy.
      callback: a Keras callback.
      begins_anyway: whether training begins for it on every worker: it restores something then.
      verbose: what the callback is to take for that of `fit`; None: that of this worker.
    """

    def __init__(self, strategy, callback, *, begins_anyway=False, verbose=None):
        super().__init__()
        self._strategy, self.callback, self._begins_anyway = strategy, callback, begins_anyway
        self._has_begun, self._verbose = False, verbose

    def set_params(self, params):
        super().set_params(params)
        self.callback.set_params(params if self._verbose is None else {**params, "verbose": self._verbose})

    def set_model(self, model):
        super().set_model(model)
        self.callback.set_model(model)

    def _hand_on(self, name, *args):
        if not (self._strategy.is_chief or (name == "on_train_begin" and self._begins_anyway)):
            return
        if not self._has_begun and name.startswith(("on_train", "on_epoch")):
            self._has_begun = True
            self.callback.on_train_begin(None)
        if name != "on_train_begin":
            getattr(self.callback, name)(*args)


def _handing_on(name):
    def method(self, *args, **kwargs):
        self._hand_on(name, *args, *kwargs.values())

    return method


for _name in vars(keras.callbacks.Callback):
    if _name.startswith("on_"):
        setattr(WhileChief, _name, _handing_on(_name))


class _RestoreOnly(keras.callbacks.Callback):
    """`BackupAndRestore` without the backup."""

    def __init__(self, callback):
        super().__init__()
        self._callback = callback

    def set_model(self, model):
        super().set_model(model)
        self._callback.set_model(model)

    def on_train_begin(self, logs=None):
        self._callback.on_train_begin(logs)
