"""Training that goes on where it was interrupted, on as many workers as there are then."""

import atexit
import collections
import dataclasses
import hashlib
import os

import keras
from absl import logging

from tfdist import checkpoint, cluster
from tfdist.checkpoint.background import BackgroundWriter
from tfdist.checkpoint.position import Position, start
from tfdist.checkpoint.stopping import StopAgreement
from tfdist.checkpoint.termination import EXIT_CODE, TerminationNotice
from tfdist.cluster.store import StoreClient
from tfdist.errors import ConfigurationError, TfdistError
from tfdist.strategies import keras_position, keras_resume, keras_snapshot

_FINAL_SECONDS = 600.0
_fit_calls = collections.Counter()  # by directory, in this process


class DistributedCheckpoint(keras.callbacks.Callback):
    """Takes checkpoints of `fit`, and resumes from the newest one when the same script is started again.

    A checkpoint holds the weights, the optimizer's variables, the states of random generators, the metrics' counts, the epoch,
    the step, and what the order of the data follows from. Another number of workers or servers may resume it, under another
    strategy of tfdist or none. The chief copies the state into the host's memory between two steps; a thread writes it
    while training goes on. A process that is killed at any moment leaves whole checkpoints behind, and a damaged one is found
    and passed over (see `tfdist.checkpoint`). Choose Keras's `BackupAndRestore` where Keras alone is to read it; beside it,
    the later one in the list decides.

    Put it on every worker, last in the list of callbacks. Only the chief reads and writes `directory`. A `fit` that had
    ended is not repeated, unless `epochs` is higher. After SIGTERM to any worker all stop between the same two steps, the
    chief takes a last checkpoint, and the processes end with exit code 143. On the chief a checkpoint costs a copy of the state,
    S bytes, and while it is written one or two times S in memory; when resuming every worker receives S.

    Within an epoch the batches that are done are passed over. Workers that take batches as they are free, the asynchronous
    ones, begin the epoch anew with the state that was reached, as do workers that follow on them.

    Args:
      directory: str or path, of the checkpoints of this training alone; made where it is missing.
      save_freq: "epoch", or an int: after how many steps a checkpoint is taken.
      keep: int >= 1, how many checkpoints stay.
      grace_seconds: float > 0, how long after SIGTERM the process may live.
      resume: bool, whether to begin with the newest checkpoint in `directory`, if there is one.

    Raises:
      ConfigurationError: an argument makes no sense; or, when training begins, the model is not like the checkpoint's.
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
                "save_freq is expected to be 'epoch' or a number of steps > 0. "
                f"Received: save_freq={save_freq!r}. Correct it."
            )
        if keep < 1:
            raise ConfigurationError(f"keep is expected to be at least 1. Received: keep={keep}. Keep the newest.")
        self.directory = os.fspath(directory)
        self.save_freq = save_freq
        self.keep = keep
        self.grace_seconds = float(grace_seconds)
        self.resume = resume
        self._notice = TerminationNotice("fit")
        # Plain values, which a worker that joins a running `fit` is given.
        self._fit_call = self._epochs = self._epoch = self._step = self._since = self._begin = self._passed = 0
        self._first_epoch = -1
        self._trains = self._lacks_metrics = False

    def on_train_begin(self, logs=None):
        directory = os.path.realpath(self.directory)
        _fit_calls[directory] += 1
        self._fit_call, self._epochs = _fit_calls[directory], (self.params or {}).get("epochs", 1)
        self._epoch = self._step = self._since = self._passed = 0
        self._metrics, self._missed, self._trains, self._first_epoch = {}, [], False, -1
        self._writer = BackgroundWriter(self.directory, self.keep)
        self._notice.begin()
        self._agreement = _agreement(self.model.distribute_strategy, self.directory)
        if self.resume and not keras_resume.is_joining(self.model):
            self._resume()

    def on_epoch_begin(self, epoch, logs=None):
        if epoch != self._epoch:  # another callback has decided where to begin
            self._passed = 0
        keras_position.pass_over(self._passed, self._missed)
        self._lacks_metrics = self._passed > 0
        if self._first_epoch < 0:
            self._first_epoch = epoch
        self._epoch, self._step, self._passed, self._trains = epoch, self._passed, 0, True

    def on_train_batch_begin(self, batch, logs=None):
        self._begin = batch

    def on_train_batch_end(self, batch, logs=None):
        if keras_resume.is_passing():
            return
        if self._lacks_metrics:
            keras_resume.add_metrics(self.model, self._metrics)
            self._lacks_metrics, self._metrics = False, {}
        self._step = batch + 1
        self._since += batch + 1 - self._begin
        if self._agreement.reached((self._epoch, 0, batch), self._notice.is_received):
            if not self._agreement.needs_meeting:
                self._stop()
            self.model.stop_training = True  # all come to the end of the epoch at once, and meet there
            return
        # Others go on counting: whoever becomes the chief, because it is lost, takes one at once.
        if self.save_freq != "epoch" and self._since >= self.save_freq and self._is_chief():
            self._since = 0
            self._save()

    def on_test_begin(self, logs=None):
        self._meet()

    def on_test_batch_end(self, batch, logs=None):
        if self._trains and not self._agreement.needs_meeting and not keras_resume.is_passing():
            if self._agreement.reached((self._epoch, 1, batch), self._notice.is_received):
                self._epoch, self._step = self._epoch + 1, 0
                self._stop()

    def on_epoch_end(self, epoch, logs=None):
        self._meet()
        self._epoch, self._step = epoch + 1, 0
        if self.save_freq == "epoch" and not keras_resume.is_passing():
            self._save()

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None  # a further fit begins at its own
        if self._trains:
            self._save(is_over=True)
            self._writer.wait(_FINAL_SECONDS)
        self._leave()
        if self._notice.is_received:
            raise SystemExit(EXIT_CODE)

    def emergency(self):
        """Takes a last checkpoint because `fit` is about to fail; never fails itself, and needs no other worker."""
        if self._trains:
            self._save_at_last(self.grace_seconds)
            self._leave()

    def _meet(self):
        """Stops workers that are not in step behind the barriers of an epoch's end: who was told to end said so before."""
        if self._trains and self._agreement.needs_meeting and self._agreement.is_announced():
            self._stop()

    def _stop(self):
        """Ends the process when the last checkpoint is written; all workers come here after the same step."""
        self._notice.end()  # a second signal ends it at once
        seconds = max(1.0, self.grace_seconds - self._notice.seconds_ago())
        if self._is_chief():
            logging.warning("SIGTERM: a last checkpoint at epoch %d, step %d.", self._epoch, self._step)
            self._save_at_last(seconds)
            self._agreement.finished()
            if getattr(self.model.distribute_strategy, "uses_servers", False):
                self._agreement.wait_left(seconds)  # they take leave of the servers, which may end with this process
        else:
            self._agreement.wait_finished(seconds)
            atexit.register(self._agreement.leave)
        self._leave()
        raise SystemExit(EXIT_CODE)

    def _leave(self):
        self._trains = False
        self._agreement.close()
        self._notice.end()

    # What the chief does

    def _steps(self):
        return (self.params or {}).get("steps") or 0

    def _is_chief(self):
        return getattr(self.model.distribute_strategy, "is_chief", True)

    def _save_at_last(self, seconds):
        try:
            self._save()
            self._writer.wait(seconds)
        except (OSError, TfdistError) as error:
            logging.error("No last checkpoint was written. %s", error)

    def _save(self, is_over=False):
        if not self._is_chief():
            return
        position = Position(
            self._fit_call, self._epoch, self._step, self._steps(), self._first_epoch, self._epochs, is_over
        )
        values = {"position": dataclasses.asdict(position), "data": keras_resume.data_position(self.model)}
        self._writer.submit(keras_snapshot.take(self.model, with_metrics=self._step > 0), values)

    def _resume(self):
        found = keras_resume.from_chief(self.model, self._restore)
        if found is not None:
            self._epoch, self._first_epoch = found["epoch"], found["first"]
            self._missed = found["data"]["missed"]
            num_passed = self._epoch - self._first_epoch
            self._passed = keras_resume.go_on(self.model, self._epoch, found["step"], num_passed, found["data"])

    def _restore(self):
        if checkpoint.latest(self.directory) is None:
            return None
        found = checkpoint.load(self.directory)
        saved = Position(**found.values["position"])
        begin = start(saved, self._fit_call, self._epochs, self._steps())
        if begin.epoch is None:
            return None
        if begin.restores:
            keras_snapshot.check(self.model, found.tensors)
            keras_snapshot.put(self.model, found.tensors)
            self._metrics = {name: array for name, array in found.tensors.items() if name.startswith("metrics/")}
            logging.info("Resuming from %s, epoch %d, step %d.", found.path, begin.epoch, begin.step)
        return {
            "epoch": begin.epoch, "step": begin.step, "first": saved.first_epoch, "data": found.values["data"],
        }  # fmt: skip


def _agreement(strategy, directory):
    """Returns the `StopAgreement` of the workers of a `fit`; alone where there is no strategy of ours, or no store."""
    place = cluster.current()
    world_size = getattr(strategy, "world_size", 1)
    has_store = world_size > 1 and place.world_size == world_size
    return StopAgreement(
        (lambda: StoreClient(place.store_address, place.secret)) if has_store else None,
        f"{getattr(strategy, 'num_fit_calls', 0)}/{hashlib.sha256(directory.encode()).hexdigest()}",
        getattr(strategy, "rank", 0),
        (lambda: strategy.worker_group.members) if has_store else (lambda: ()),
        getattr(strategy, "is_in_step", True),
    )
