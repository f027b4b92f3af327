"""Writes checkpoints while training goes on."""

import threading
import time

from absl import logging

from tfdist.checkpoint.writing import write


class BackgroundWriter:
    """Writes one checkpoint after the other, in a thread that lives as long as there is one to write.

    Thread safe. If checkpoints come faster than the disk takes them, the one that waits is replaced by the newer one: `submit`
    never waits, and at most two snapshots are held. The interpreter does not end before the last one is written.

    Args:
      directory: str or path.
      keep: int >= 1, how many checkpoints stay.
    """

    def __init__(self, directory, keep=3):
        self._directory = directory
        self._keep = keep
        self._changed = threading.Condition()  # guards everything below
        self._waiting = None
        self._is_writing = False
        self._error = None

    def submit(self, tensors, values):
        """Has a checkpoint written; see `write`. The arrays must not change any more."""
        with self._changed:
            self._waiting = (tensors, values)
            if not self._is_writing:
                self._is_writing = True
                threading.Thread(target=self._write, name="tfdist-checkpoint").start()

    def wait(self, timeout):
        """Waits until what was submitted is written.

        Args:
          timeout: float seconds.

        Raises:
          OSError: the last one could not be written.
          TimeoutError: it is not written yet.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._is_writing, timeout):
                raise TimeoutError(
                    f"A checkpoint was expected to be in {self._directory} within timeout={timeout:g} s. Received: it is "
                    "still being written. See whether the file system answers."
                )
            if self._error is not None:
                raise self._error

    def _write(self):
        while True:
            with self._changed:
                if self._waiting is None:
                    self._is_writing = False
                    self._changed.notify_all()
                    return
                (tensors, values), self._waiting = self._waiting, None
            error, begin = None, time.perf_counter()
            try:
                path = write(self._directory, tensors, values, keep=self._keep)
                logging.debug("Wrote %s in %.3f s.", path, time.perf_counter() - begin)
            except Exception as caught:  # whatever it is: training goes on, and whoever waits is told
                error = caught
                logging.exception("The checkpoint was not written to %s; training goes on.", self._directory)
            with self._changed:
                self._error = error
            del tensors, values
