"""What happens once when a strategy is made: checks, the group, common randomness, the adapter to Keras."""

import os

import keras

from tfdist import errors


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


def form_group(group, timeout, tls=None):
    """Returns `group`, or the group of this process; None for a single worker without one."""
    if tls is not None:
        _encrypt(bool(tls), group)
    if group is None:
        from tfdist import cluster

        if cluster.current().world_size == 1:
            return None
        from tfdist import comm

        group = comm.default_group()
    if timeout is not None:
        group.timeout = float(timeout)
    return group


def _encrypt(tls, group):
    """Makes the connections to come encrypted; refuses where there are some that are not, or that are by somebody's order."""
    from tfdist import cluster, comm
    from tfdist.cluster import variables

    is_on = variables.tls(os.environ) is not None
    if tls == is_on:
        return
    if is_on or group is not None or comm.is_formed() or cluster.current().source == "tfdist run":
        raise errors.ConfigurationError(
            f"tls is expected to be how this job connects already, {is_on}. Received: tls={tls}. "
            + ("Unset TFDIST_TLS." if is_on else "Start it by `tfdist run --tls`, or with TFDIST_TLS=1 on every host.")
        )
    os.environ["TFDIST_TLS"] = "1"


def prepare(strategy):
    """Installs the adapter to Keras and gives all workers a common TensorFlow seed."""
    from tfdist.strategies import keras_adapter, tensorflow_seed

    keras_adapter.install()
    if strategy.world_size > 1:
        tensorflow_seed.share(strategy)
