"""TensorFlow's global seed: the same on all workers outside of replica functions, another on each inside.

Reading and folding the seed of eager mode has no public way; a test notices when TensorFlow changes.
"""

import secrets

import tensorflow as tf
from tensorflow.python.eager import context

_PRIME = 1_000_003


def share(strategy):
    """Gives all workers rank 0's seed unless the user has set one: an unseeded `Dataset.shuffle` must not differ."""
    mine = context.global_seed()
    proposed = strategy.share_bytes(b"" if mine is not None else secrets.token_bytes(4), name="TensorFlow's seed")
    if mine is None and proposed:
        tf.random.set_seed(int.from_bytes(proposed, "little") % 2**31)


class FoldedSeed:
    """Random operations of TensorFlow (Keras has its own) that are made in this context differ between ranks.

    Args:
      rank: int; rank 0 draws what one process would draw.
    """

    def __init__(self, rank):
        self._rank = rank

    def __enter__(self):
        is_eager = tf.executing_eagerly()
        self._owner, self._name = (context.context(), "_seed") if is_eager else (_graph(), "seed")
        self._seed = getattr(self._owner, self._name)
        if self._seed is not None and self._rank:
            setattr(self._owner, self._name, (self._seed + _PRIME * self._rank) % 2**31)

    def __exit__(self, *exc_info):
        setattr(self._owner, self._name, self._seed)


def _graph():
    return tf.compat.v1.get_default_graph()
