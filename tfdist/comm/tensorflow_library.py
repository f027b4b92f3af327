"""Loads the TensorFlow operations. The only module of `comm` that imports TensorFlow."""

import ctypes
import functools
import glob
import os

from tfdist.comm import library
from tfdist.errors import ConfigurationError


@functools.cache
def operations():
    """Returns the module of the operations `TfdistStart`, `TfdistWait` and `TfdistWaitRows`.

    Raises:
      ConfigurationError: the library is missing, or this TensorFlow does not take it.
    """
    import tensorflow as tf

    library.core()  # says best what is wrong with the installation
    path = library.path("tensorflow")
    # Up to TensorFlow 2.16 the C API's symbols are in a library that is not loaded globally.
    for candidate in glob.glob(os.path.join(tf.sysconfig.get_lib(), "libtensorflow_cc.so.2")):
        ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
    try:
        return tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError) as error:
        raise ConfigurationError(
            f"tfdist's TensorFlow operations were expected to load from {path}. Received: {error}. "
            f"They work with TensorFlow 2.16 and newer (this is {tf.__version__}); reinstall tfdist with "
            "`pip install --force-reinstall --no-deps tfdist` from where you got it."
        ) from error
