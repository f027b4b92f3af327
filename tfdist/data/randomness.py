"""Looks into datasets: what they are made of, and whether they would be in another order on every worker.

`tf.data` has no public way to do so; this module reads `Dataset._inputs()` and the seeds of its parts, and a test
notices when TensorFlow changes.
"""

from tfdist.errors import ConfigurationError


def check_alike(strategy, dataset):
    """Makes sure that all workers see `dataset` in the same order.

    Raises:
      ConfigurationError: if it is shuffled without a seed, having been made before the strategy.
      MismatchError: if the workers shuffle with different seeds.
    """
    seeds = find_seeds(dataset)
    if any(seed == [0, 0] for seed in seeds):
        raise ConfigurationError(
            "A dataset that workers share must be in the same order on all of them. Received: a dataset that draws "
            "random numbers without a seed. Create the strategy before the dataset, or pass seed= to shuffle()."
        )
    if seeds:
        strategy.agree("the seeds of a shuffled dataset", {"seeds": seeds})


def find_seeds(dataset):
    """Returns the seeds of all parts of `dataset` that draw random numbers, a list of `[seed, seed2]`."""
    return [[int(part._seed), int(part._seed2)] for part in parts(dataset) if hasattr(part, "_seed2")]


def parts(dataset):
    """Yields `dataset` and every dataset that it is made from."""
    yield dataset
    for source in dataset._inputs():
        yield from parts(source)


def is_marked(dataset, mark):
    """Returns whether `dataset`, or one that it was made from, carries the attribute `mark`."""
    return any(getattr(part, mark, False) for part in parts(dataset))
