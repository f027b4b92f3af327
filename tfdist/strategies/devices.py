"""One process, one accelerator."""

import tensorflow as tf
from absl import logging

CPU, GPU = "/device:CPU:0", "/device:GPU:0"


def choose(local_rank=0):
    """Returns the device of this process; on a machine with several GPUs the one of its local rank.

    Memory of the GPU grows on demand, so that several workers of one machine can share it.

    Args:
      local_rank: this worker's index among those of its machine.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return CPU
    try:
        mine = gpus[local_rank % len(gpus)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)
    except RuntimeError as error:
        logging.warning("TensorFlow was initialised before the strategy was made, GPU left as it was: %s", error)
    return GPU
