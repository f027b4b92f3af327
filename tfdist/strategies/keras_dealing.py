"""Epochs of which nobody knows beforehand how many batches this worker will get: Keras neither warns nor counts on it."""

from tfdist.data import dealing
from tfdist.strategies.keras_functions import strategy_of


def interrupted_warning(original, epoch_iterator):
    """Stands in for `EpochIterator._interrupted_warning`, which Keras calls when data end that it knew no end of.

    Keras has noted the length by then, and would stop the next epoch there.
    """
    if not dealing.is_dealt(getattr(epoch_iterator, "_distributed_dataset", None)):
        return original(epoch_iterator)
    epoch_iterator._num_batches = None
    return None


def on_epoch_end(original, progress_bar, epoch, logs=None):
    """Stands in for `ProgbarLogger.on_epoch_end`, which takes the length of one epoch for that of the next."""
    is_unknown = progress_bar.target is None and strategy_of(progress_bar.model) is not None
    original(progress_bar, epoch, logs)
    if is_unknown:
        progress_bar.target = None
