"""What happens once when a strategy is made: checks, the group, common randomness, the adapter to Keras."""

import os
import secrets

import keras
import tensorflow as tf

from tfdist import errors

_UNSEEDED = 87654321  # TensorFlow's stand-in for "no global seed was set"


def check_keras():
    """Refuses what tfdist cannot train: another backend, or the legacy tf-keras."""
    if keras.backend.backend() != "tensorflow":
        raise errors.ConfigurationError(
            f"Keras must run on TensorFlow. Received: KERAS_BACKEND={keras.backend.backend()!r}. "
            "Unset KERAS_BACKEND or set it to 'tensorflow'."
        )
    if os.environ.get("TF_USE_LEGACY_KERAS", "0").lower() in ("1", "true"):
        raise errors.ConfigurationError(
            f"tfdist works with Keras 3. Received: TF_USE_LEGACY_KERAS={os.environ['TF_USE_LEGACY_KERAS']!r}. "
            "Unset it and use `import keras`."
        )


def form_group(group, timeout):
    """Returns `group`, or the group of this process; None for a single worker without one."""
    if group is None:
        from tfdist import cluster

        if cluster.current().world_size == 1:
            return None
        from tfdist import comm

        group = comm.default_group()
    if timeout is not None:
        group.timeout = float(timeout)
    return group


def prepare(strategy):
    """Installs the adapter to Keras and gives all workers a common TensorFlow seed."""
    from tfdist.strategies import keras_adapter

    keras_adapter.install()
    if strategy.world_size > 1:
        _share_tensorflow_seed(strategy)


def _share_tensorflow_seed(strategy):
    """An unseeded `Dataset.shuffle` must not give every worker another order."""
    is_set = tf.compat.v1.random.get_seed(1)[0] != _UNSEEDED
    mine = b"" if is_set else secrets.token_bytes(4)
    shared = strategy.share_bytes(mine)
    if not is_set and shared:
        tf.random.set_seed(int.from_bytes(shared, "little") % 2**31)
