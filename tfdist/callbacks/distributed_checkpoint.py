"""Training that goes on where it was interrupted, on as many workers as there are then."""

import collections
import dataclasses
import hashlib
import os

import keras
from absl import logging

from tfdist import checkpoint, cluster
from tfdist.checkpoint.background import BackgroundWriter
from tfdist.checkpoint.position import Interval, Position, start
from tfdist.checkpoint.stopping import StopAgreement
from tfdist.checkpoint.termination import EXIT_CODE, TerminationNotice
from tfdist.cluster.store import StoreClient
from tfdist.errors import ConfigurationError, TfdistError
from tfdist.strategies import keras_resume, keras_snapshot

_FINAL_SECONDS = 600.0
_fit_calls = collections.Counter()  # by directory, in this process


class DistributedCheckpoint(keras.callbacks.Callback):
    """Takes checkpoints of `fit`, and resumes from the newest one when the same script is started again.

    A checkpoint holds the weights, the optimizer's variables, the states of random generators, the epoch, the step, and what
    the order of the data follows from. It may be resumed with another number of workers or servers, under another strategy
    of tfdist or none. The chief copies the state into the host's memory between two steps; a thread writes it while training
    goes on. A process that is killed at any moment leaves whole checkpoints behind, and a damaged one is found and
    passed over (see `tfdist.checkpoint`). Choose Keras's `BackupAndRestore` where nothing but Keras may read it.

    Put it on every worker, last in the list of callbacks. Only the chief reads and writes `directory`. A `fit` that had ended
    is not repeated, unless `epochs` is higher. On the chief a checkpoint costs a copy of the state, S bytes, and while it is
    written one or two times S in memory; at the start every worker receives S.

    Args:
      directory: str or path, of the checkpoints of this training alone; made where it is missing.
      save_freq: "epoch", or an int: after how many steps a checkpoint is taken.
      keep: int >= 1, how many checkpoints stay.
      grace_seconds: float > 0, how long after SIGTERM the process may live.
      resume: bool, whether to begin with the newest checkpoint in `directory`, if there is one.

    Raises:
      ConfigurationError: an argument makes no sense; or, when training begins, the model is another one than the checkpoint's.
      CorruptCheckpointError: when training begins, if there are checkpoints and all are damaged.

    Example:

    ```python
    model.fit(x, y, epochs=10, callbacks=[tfdist.callbacks.DistributedCheckpoint("checkpoints")])
    ```
    """

    def __init__(self, directory, save_freq="epoch", *, keep=3, grace_seconds=10.0, resume=True):
        super().__init__()
        if save_freq != "epoch" and not (isinstance(save_freq, int) and save_freq > 0):
            raise ConfigurationError(
                f"save_freq is expected to be 'epoch' or a number of steps > 0. Received: save_freq={save_freq!r}. Correct it."
            )
        if keep < 1:
            raise ConfigurationError(f"keep is expected to be at least 1. Received: keep={keep}. Keep the newest.")
        self.directory = os.fspath(directory)
        self.save_freq = save_freq
        self.keep = keep
        self.grace_seconds = float(grace_seconds)
        self.resume = resume
        self._notice = TerminationNotice("fit")

    def on_train_begin(self, logs=None):
        _fit_calls[os.path.realpath(self.directory)] += 1
        self._at = Position(_fit_calls[os.path.realpath(self.directory)], epochs=(self.params or {}).get("epochs", 1))
        self._interval = Interval(None if self.save_freq == "epoch" else self.save_freq)
        self._writer = BackgroundWriter(self.directory, self.keep)
        self._metrics, self._passed, self._trains = None, 0, False
        self._notice.begin()
        self._agreement = _agreement(self.model.distribute_strategy, self.directory)
        if self.resume:
            self._resume()

    def on_epoch_begin(self, epoch, logs=None):
        if epoch != self._at.epoch:  # another callback has decided where to begin
            self._passed = 0
        if self._passed:
            keras_resume.restore_metrics(self.model, lambda: keras_snapshot.put_metrics(self.model, self._metrics))
        self._at = dataclasses.replace(self._at, epoch=epoch, step=self._passed)
        self._passed, self._trains = 0, True

    def on_train_batch_end(self, batch, logs=None):
        num_steps = batch + 1 - self._at.step
        self._at = dataclasses.replace(self._at, step=batch + 1)
        if self._agreement.reached((self._at.epoch, 0, batch), self._notice.is_received):
            self._stop()
        if self._interval.passed(num_steps):
            self._save()

    def on_test_batch_end(self, batch, logs=None):
        if self._trains and self._agreement.reached((self._at.epoch, 1, batch), self._notice.is_received):
            self._at = dataclasses.replace(self._at, epoch=self._at.epoch + 1, step=0)
            self._stop()

    def on_epoch_end(self, epoch, logs=None):
        self._at = dataclasses.replace(self._at, epoch=epoch + 1, step=0)
        if self.save_freq == "epoch":
            self._save()

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None  # a further fit begins at its own
        if self._trains:
            self._at = dataclasses.replace(self._at, is_over=True)
            self._save()
            self._writer.wait(_FINAL_SECONDS)
        self._trains = False
        self._agreement.close()
        self._notice.end()
        if self._notice.is_received:
            raise SystemExit(EXIT_CODE)

    def emergency(self):
        """Takes a last checkpoint because `fit` is about to fail; never fails itself. No other worker is needed."""
        if not self._trains:
            return
        try:
            self._save()
            self._writer.wait(self.grace_seconds)
        except (OSError, TfdistError) as error:
            logging.error("No final checkpoint was taken. %s", error)
        self._agreement.close()
        self._notice.end()

    # What the chief does

    def _stop(self):
        """Ends the process, on all workers at the same step, when the last checkpoint is written."""
        self._notice.end()  # a second signal ends it at once
        seconds = max(1.0, self.grace_seconds - self._notice.seconds_ago())
        if self._is_chief():
            logging.warning(
                "A last checkpoint at epoch %d, step %d, as SIGTERM asks for an end.", self._at.epoch, self._at.step
            )
            try:
                self._save()
                self._writer.wait(seconds)
            except (OSError, TfdistError) as error:
                logging.error("No final checkpoint was taken. %s", error)
            self._agreement.finished()
        else:
            self._agreement.wait_finished(seconds)
        self._agreement.close()
        raise SystemExit(EXIT_CODE)

    def _is_chief(self):
        return getattr(self.model.distribute_strategy, "is_chief", True)

    def _save(self):
        if not self._is_chief():
            return
        tensors = keras_snapshot.take(self.model, with_metrics=self._at.step > 0)
        values = {"position": dataclasses.asdict(self._at), "data": keras_resume.data_position(self.model)}
        self._writer.submit(tensors, values)

    def _resume(self):
        found = keras_resume.from_chief(self.model, self._restore)
        if found is None:
            return
        self._passed = keras_resume.go_on(self.model, found["epoch"], found["step"], found["data"])
        self._at = dataclasses.replace(self._at, epoch=found["epoch"], step=self._passed)

    def _restore(self):
        if checkpoint.latest(self.directory) is None:
            return None
        found = checkpoint.load(self.directory)
        begin = start(Position(**found.values["position"]), self._at.fit_call, self._at.epochs)
        if begin.epoch is None:
            return None
        if begin.restores:
            keras_snapshot.check(self.model, found.tensors)
            keras_snapshot.put(self.model, found.tensors)
            self._metrics = {name: array for name, array in found.tensors.items() if name.startswith("metrics/")}
            logging.info("Resuming from %s, epoch %d, step %d.", found.path, begin.epoch, begin.step)
        return {"epoch": begin.epoch, "step": begin.step, "data": found.values["data"]}


def _agreement(strategy, directory):
    """Returns the `StopAgreement` of the workers of a `fit`; alone where there is no strategy of ours, or no store."""
    place = cluster.current()
    world_size = getattr(strategy, "world_size", 1)
    has_store = world_size > 1 and place.world_size == world_size
    return StopAgreement(
        (lambda: StoreClient(place.store_address, place.secret)) if has_store else None,
        f"{getattr(strategy, 'num_fit_calls', 0)}/{hashlib.sha256(directory.encode()).hexdigest()}",
        getattr(strategy, "rank", 0),
        list(range(world_size)),
        getattr(strategy, "is_in_step", True),
    )
