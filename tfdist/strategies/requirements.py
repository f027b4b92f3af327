"""TensorFlow under either of its two names.

pip cannot express "tensorflow or tensorflow-cpu", and both fill the same folder: requiring one would overwrite the other.
The package therefore requires neither, and asks here, on the first use of a strategy.
"""

import importlib.util

from tfdist import errors

OLDEST = (2, 16)
_REMEDY = (
    "Run `pip install tensorflow-cpu` (CPU), or `pip install tensorflow` (`tensorflow[and-cuda]` for NVIDIA GPUs)."
)


def check_tensorflow():
    """Raises ConfigurationError, one line, where TensorFlow is missing or too old for Keras 3."""
    expected = f"tfdist's strategies need TensorFlow >= {OLDEST[0]}.{OLDEST[1]}"
    if importlib.util.find_spec("tensorflow") is None:
        raise errors.ConfigurationError(f"{expected}. Received: no module 'tensorflow'. {_REMEDY}")
    import tensorflow as tf

    version = getattr(tf, "__version__", None)
    if version is None:  # an uninstalled TensorFlow leaves its empty folder behind
        raise errors.ConfigurationError(
            f"{expected}. Received: an empty 'tensorflow' at {list(tf.__path__)}. {_REMEDY}"
        )
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise errors.ConfigurationError(f"{expected}. Received: TensorFlow {version}. {_REMEDY}")
