"""Strategies by name."""

import os

import tensorflow as tf

from tfdist import errors


def _ring(**arguments):
    from tfdist.strategies.ring import RingAllReduceStrategy

    return RingAllReduceStrategy(**arguments)


def _mirrored(**arguments):
    from tfdist import cluster

    world_size = cluster.current().world_size
    if world_size > 1:
        raise errors.ConfigurationError(
            "The strategy 'mirrored' spans the devices of one process; several processes would train unrelated "
            f"models. Received: name='mirrored' with {world_size} workers. Use 'ring', or start one process."
        )
    return tf.distribute.MirroredStrategy(**arguments)


def _async(**arguments):
    from tfdist.strategies.async_sgd import AsyncSGDStrategy

    return AsyncSGDStrategy(**arguments)


def _bounded(**arguments):
    return _async(**{"staleness_bound": _STALENESS_BOUND, **arguments})


def _sync(**arguments):
    from tfdist.strategies.sync_sgd import SyncSGDStrategy

    return SyncSGDStrategy(**arguments)


_STALENESS_BOUND = 4
_MAKERS = {"ring": _ring, "mirrored": _mirrored, "async": _async, "bounded": _bounded, "sync": _sync}
_DEFAULT = "ring"


def strategy(name=None, **arguments):
    """Makes the strategy called `name`.

    Args:
      name: `"ring"`, `"async"`, `"bounded"` (asynchronous, staleness_bound 4 unless given), `"sync"` or `"mirrored"`; default: the environment variable `TFDIST_STRATEGY`, else `"ring"`.
      **arguments: passed to the strategy.

    Returns:
      A `tf.distribute.Strategy`.

    Raises:
      ConfigurationError: if there is no strategy of that name.
    """
    name = name or os.environ.get("TFDIST_STRATEGY") or _DEFAULT
    if name not in _MAKERS:
        raise errors.ConfigurationError(
            f"A strategy's name must be one of {sorted(_MAKERS)}. Received: name={name!r}. Correct the name."
        )
    return _MAKERS[name](**arguments)


def use(name=None, **arguments):
    """Makes the strategy called `name` the default of this process, so that no `scope()` is needed.

    Call it once, before the model is built. It stays in force after `keras.utils.clear_session()`.

    Args:
      name: see `strategy`.
      **arguments: passed to the strategy.

    Returns:
      The strategy.

    Example:

    ```python
    tfdist.use("ring")
    model = keras.Sequential([keras.layers.Dense(10)])
    ```
    """
    from tfdist.strategies import keras_adapter

    chosen = strategy(name, **arguments)
    tf.distribute.experimental_set_strategy(chosen)
    keras_adapter.install()
    keras_adapter.keep_after_clear_session(chosen)
    return chosen
