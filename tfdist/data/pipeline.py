"""How an input pipeline runs beside a worker's computation."""

import os

import tensorflow as tf


def has_one_core():
    """Returns whether this process has a single core.

    Then nothing is gained by preparing a batch beside the step that uses the one before: the threads would only take turns.
    """
    return len(os.sched_getaffinity(0)) == 1 if hasattr(os, "sched_getaffinity") else os.cpu_count() == 1


def parallel_map(dataset, function):
    """Returns `dataset.map(function)`, of several elements at once where there are cores for that."""
    if has_one_core():
        return dataset.map(function)
    return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def finish(dataset, num_ahead=tf.data.AUTOTUNE):
    """Returns `dataset`, prefetched where there is a core for that.

    Args:
      dataset: a `tf.data.Dataset`.
      num_ahead: int, how many elements are prepared beforehand.
    """
    return ahead(configure(dataset), num_ahead)


def configure(dataset):
    """Returns `dataset` so that it does what it says, no more and in no other order."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.deterministic = True  # workers must see the same batches in the same order
    # With one core there is nothing to tune, and whoever drops an iterator would wait for its tuner: seconds, in long epochs.
    options.autotune.enabled = not has_one_core()
    return dataset.with_options(options)


def ahead(dataset, num_ahead):
    """Returns `dataset`, prefetched where there is a core for that; see `finish`."""
    return dataset if has_one_core() else dataset.prefetch(num_ahead)
