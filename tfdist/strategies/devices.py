"""One process, one accelerator."""

import tensorflow as tf
from absl import logging

from tfdist import cluster

CPU, GPU = "/device:CPU:0", "/device:GPU:0"


def choose(rank, world_size):
    """Returns the device of this process; among several workers on a machine, the GPU of its local rank.

    The memory of that GPU grows on demand, so that workers can share it. A single worker's GPUs are left as they are.

    Args:
      rank: int, this worker's rank.
      world_size: int, the number of workers.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return CPU
    if world_size == 1:
        return GPU
    place = cluster.current()
    local_rank = place.local_rank if place.world_size == world_size else rank
    try:
        mine = gpus[local_rank % len(gpus)]
        tf.config.set_visible_devices(mine, "GPU")
        tf.config.experimental.set_memory_growth(mine, True)
    except RuntimeError as error:
        logging.warning("TensorFlow was initialised before the strategy was made, GPU left as it was: %s", error)
    return GPU
