"""Only the chief writes; the others wait until it has."""

import collections
import hashlib
import threading

import keras
from absl import logging

from tfdist import cluster
from tfdist.cluster.store import StoreClient
from tfdist.strategies import keras_servers
from tfdist.strategies.replica import AbstractReplicaStrategy

_CHIEF_ONLY = ("TensorBoard", "CSVLogger", "RemoteMonitor", "ProgbarLogger")
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
    if strategy.is_chief:
        with strategy.extended.alone():  # Keras makes an optimizer anew to write down its configuration
            result = original(model, *args, **kwargs)
        _announce(strategy, event)
        return result
    logging.log_first_n(logging.INFO, "Rank %d does not write %s: the chief does.", 1, strategy.rank, path)
    _await(strategy, event)
    return None


def _announce(strategy, event):
    with _store(strategy) as store:
        store.set(event, b"done")


def _await(strategy, event):
    with _store(strategy) as store:
        store.get(event, timeout=strategy.worker_group.timeout)


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
    if strategy.is_chief:
        return callbacks
    kept = []
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            kept.append(_RestoreOnly(callback))
        elif not any(base.__name__ in _CHIEF_ONLY for base in type(callback).__mro__):
            kept.append(callback)
    return kept


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
