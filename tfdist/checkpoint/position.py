"""Where in a script's training a checkpoint was taken, and where a run that finds it goes on."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Position:
    """A place between two steps.

    Attributes:
      fit_call: int >= 1, the how many-th `fit` of the script that writes into this directory.
      epoch: int >= 0, the epoch that is going on.
      step: int >= 0, how many steps of it are done.
      epochs: int, the `epochs` that `fit` was called with.
      is_over: bool, whether that `fit` has ended.
    """

    fit_call: int = 1
    epoch: int = 0
    step: int = 0
    epochs: int = 1
    is_over: bool = False


@dataclasses.dataclass(frozen=True)
class Start:
    """What a `fit` does about the newest checkpoint.

    Attributes:
      restores: bool, whether the state is taken from it.
      epoch, step: where to begin; None leaves it to `fit`.
    """

    restores: bool
    epoch: int | None = None
    step: int = 0


def start(saved, fit_call, epochs, steps=None):
    """Returns the `Start` of a `fit`.

    A `fit` that had ended is not repeated, unless more epochs are asked for; one that a later `fit` has followed is passed
    over, and its state is not touched (the model may have been another one then).

    Args:
      saved: the `Position` of the newest checkpoint, or None.
      fit_call: int, the how many-th `fit` this is.
      epochs: int, what it is called with.
      steps: int, how many steps an epoch has; None where nobody knows.
    """
    if saved is None or saved.fit_call < fit_call:
        return Start(False)
    if saved.fit_call > fit_call:
        return Start(False, epochs)
    if saved.is_over and saved.epochs == epochs:  # an early stop counts
        return Start(True, epochs)
    if steps and saved.step >= steps:
        return Start(True, saved.epoch + 1)
    return Start(True, saved.epoch, saved.step)
