"""A `fit` that begins in the midst of an epoch: what is done is passed over, and the order of the data goes on."""

import threading

from tfdist.data import recut
from tfdist.strategies.keras_functions import strategy_of

_LOCAL = threading.local()


def start_at(model, epoch, num_passed=0):
    """Has the `fit` that is about to begin start with a later epoch; call it from `on_train_begin`, on every worker.

    Args:
      model: the model.
      epoch: int, Keras's number of the epoch.
      num_passed: int, how many epochs were begun before it, since the data were drawn in this order.
    """
    from tfdist.strategies import keras_trainer

    model._initial_epoch = epoch
    call = keras_trainer.current_call()
    if strategy_of(model) is not None and call is not None:
        for order in call.orders:
            order.pass_epochs(num_passed)


def pass_over(num_steps, missed=()):
    """Has the epoch that is about to begin start after some steps; call it from `on_epoch_begin`, on every worker.

    Array data of elastic workers are entered there; of other data the batches are read, and thrown away.

    Args:
      num_steps: int.
      missed: list of int, rows that elastic workers are to see in the rest of the epoch, as others were lost with them.
    """
    from tfdist.strategies import keras_adapter

    keras_adapter.install()  # with one worker there may be no strategy that has done so
    _LOCAL.begin = (num_steps, missed)


def enumerate_iterator(original, epoch_iterator):
    """Stands in for `EpochIterator._enumerate_iterator`.

    That yields tuples of numbers of batches, and the iterator from which a step takes them.
    """
    (num_steps, missed), _LOCAL.begin = getattr(_LOCAL, "begin", None) or (0, ()), None
    steps = original(epoch_iterator)
    return _after(num_steps, missed, steps, epoch_iterator.steps_per_execution) if num_steps else steps


def _after(num_steps, missed, steps, num_batches):
    passed = 0
    for step in steps:
        if step[0] + num_batches <= num_steps:
            passed += num_batches
            continue
        if passed:
            _skip(step[-1], passed, missed)
        passed = 0
        yield step


def _skip(iterator, num_batches, missed):
    if isinstance(iterator, recut.Part):
        iterator.pass_over(num_batches, missed)
    else:
        for _ in range(num_batches):
            next(iterator, None)
