"""Has a `fit` go on where another one stopped: its epoch, its step, and the order of its data."""

import json

from tfdist.data import permutation
from tfdist.errors import TfdistError
from tfdist.strategies import keras_elastic, keras_position, keras_snapshot, keras_trainer
from tfdist.strategies.keras_functions import strategy_of


def data_position(model):
    """Returns what the order of the data follows from, fit for JSON; see `go_on`."""
    call, strategy = keras_trainer.current_call(), strategy_of(model)
    if strategy is None or call is None:
        return {"seed": None, "in_step": True, "missed": []}
    fit = keras_elastic.current_fit()
    missed = fit.missed_rows() if fit is not None else []
    return {"seed": list(call.seed), "in_step": _counts_all_steps(strategy), "missed": missed}


def _counts_all_steps(strategy):
    """Whether the steps of one worker tell which batches of an epoch are done."""
    return strategy is None or strategy.is_in_step or strategy.world_size == 1


def is_joining(model):
    """Whether this worker is about to join a `fit` that is going on, and will be given its state."""
    strategy = strategy_of(model)
    return strategy is not None and strategy.elastic is not None and strategy.elastic.is_joining


def is_passing():
    """Whether this worker has just joined a `fit`, and passes over steps that the others have done."""
    fit = keras_elastic.current_fit()
    return fit is not None and fit.is_passing


def go_on(model, epoch, step, num_passed, data):
    """Has the `fit` that is about to begin start at a place; call it from `on_train_begin` on every worker.

    Args:
      model: the model.
      epoch: int.
      step: int, how many steps of that epoch are done.
      num_passed: int, how many epochs were begun before it since the data were drawn in this order.
      data: what `data_position` returned when the place was left.

    Returns:
      How many steps of the epoch are to be passed over, an int: 0 where several workers took or take batches as they are
      free.
    """
    call, strategy = keras_trainer.current_call(), strategy_of(model)
    if strategy is not None and call is not None and data["seed"]:
        call.seed[:] = data["seed"]  # the order of an epoch is drawn from it when the epoch begins
        strategy.seed, strategy.num_fit_calls = data["seed"]
        permutation.keep_seed(strategy)
    keras_position.start_at(model, epoch, num_passed)
    return step if data["in_step"] and _counts_all_steps(strategy) else 0


def from_chief(model, restore, parts=("model", "optimizer")):
    """Gives all workers the state that the chief restores. It costs a broadcast of the state.

    Args:
      model: the model.
      restore: function of no arguments, called on the chief. It may change variables of the model, and returns a dict fit
        for JSON, or None where it has changed nothing.
      parts: which variables it may change, see `keras_snapshot.share`.

    Returns:
      That dict or None, on every worker.

    Raises:
      What `restore` raises, on the chief; TfdistError with its text on the others.
    """
    strategy = strategy_of(model)
    if strategy is None or strategy.world_size == 1:
        return restore()
    answer, failure, told = None, None, []
    while not any(told):  # the chief may be lost on the way: then all see nothing, and the next one restores
        if strategy.is_chief and answer is None:
            answer = {"rank": strategy.rank}
            try:
                answer["found"] = restore()
            except Exception as error:
                answer["error"], failure = f"{type(error).__name__}: {error}", error
        told = strategy.worker_group.all_gather_bytes(b"" if answer is None else json.dumps(answer).encode())
    answer = json.loads(next(text for text in told if text))
    if failure is not None:
        raise failure
    if "error" in answer:
        raise TfdistError(
            f"Rank {answer['rank']}, the chief, was expected to restore a checkpoint. Received: {answer['error']}"
        )
    if answer["found"] is not None:
        keras_snapshot.share(strategy, model, answer["rank"], parts)
    return answer["found"]


def add_metrics(model, tensors):
    """Adds to the metrics what the chief's `tensors` tell of earlier steps; all workers call it after the same step."""
    from_chief(model, lambda: keras_snapshot.add_metrics(model, tensors) or {}, ["metrics"])
