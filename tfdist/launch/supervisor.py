"""Watches the workers of this host until the job is over, and ends it when one fails or the user asks to."""

import contextlib
import dataclasses
import queue
import signal
import threading
import time

from tfdist.launch import failure as failures

_FIRST_LOOK_SECONDS = 0.3  # the cause may be seen just after its first consequence
_LAST_LOOK_SECONDS = 1.0
_GRACE_SECONDS = 3.0
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")
_BROKEN_PIPE = "SIGPIPE"


class Supervisor:
    """Runs a job to its end; use it once.

    Args:
      world_size: int, workers on all hosts.
      read_reports: returns {rank: report} of the workers that have reported why they fail.
    """

    def __init__(self, world_size, read_reports):
        self._world_size = world_size
        self._read_reports = read_reports
        self._events = queue.SimpleQueue()  # safe to fill from a signal handler
        self._workers = []

    def on_exit(self, worker):
        """To be given to each `Worker`."""
        self._events.put(worker)

    def on_broken_output(self):
        """To be given to the `Output`."""
        self._events.put(_BROKEN_PIPE)

    @contextlib.contextmanager
    def signals_forwarded(self):
        """Turns signals to this process into events, from before the first worker starts."""
        if threading.current_thread() is not threading.main_thread():
            yield  # the main thread's handlers stay in charge
            return
        before = {}
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # exit codes would be lost
            before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for name in _FORWARDED:
            number = getattr(signal, name)
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
                before[number] = signal.signal(number, lambda number, _: self._events.put(signal.Signals(number).name))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def run(self, workers):
        """Waits for the end of the workers.

        Returns:
          `(exit_code, text)`: text tells the user why, and is None after success.
        """
        self._workers = workers
        alive = set(workers)
        while alive:
            event = self._events.get()
            if isinstance(event, str):
                self._stop(alive, getattr(signal, event if event in _FORWARDED else "SIGTERM"))
                text = None if event == _BROKEN_PIPE else f"tfdist run: stopped by {event}."
                return 128 + getattr(signal, event), text
            alive.discard(event)
            if event.exit_code != 0:
                return self._fail(alive)
        return 0, None

    def _fail(self, alive):
        begin = time.monotonic()
        while alive and time.monotonic() - begin < self._patience():
            with contextlib.suppress(queue.Empty):
                alive.discard(self._events.get(timeout=0.05))
        culprit = failures.find_culprit(self._failures())
        self._stop(alive, signal.SIGTERM)
        for worker in self._workers:
            worker.finish()
            if worker.rank == culprit.rank:  # its last lines are complete only now
                culprit = dataclasses.replace(culprit, last_errors=tuple(worker.last_errors()))
        seconds = culprit.time - min(worker.started for worker in self._workers)
        text = failures.describe(culprit, self._world_size, max(0.0, seconds))
        return failures.exit_code(culprit), text

    def _patience(self):
        only_consequences = all(failure.is_consequence for failure in self._failures())
        return _LAST_LOOK_SECONDS if only_consequences else _FIRST_LOOK_SECONDS

    def _failures(self):
        reports = self._read_reports()
        found = []
        for worker in self._workers:
            told = reports.pop(worker.rank, None)
            if worker.exit_code not in (None, 0) or told:
                code = worker.exit_code or 1  # it has told why, and is about to end
                when = told["time"] if told else worker.ended
                found.append(failures.Failure(worker.rank, code, when, told, tuple(worker.last_errors())))
        # What is left are workers of other hosts.
        return found + [failures.Failure(rank, 1, told["time"], told) for rank, told in reports.items()]

    def _stop(self, alive, number):
        """Asks the workers to end, and gives them time; `Worker.finish` kills the rest."""
        for worker in alive:
            worker.send(number)
        deadline = time.monotonic() + _GRACE_SECONDS
        while alive and time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
                if event == "SIGINT":
                    break  # asked twice
                alive.discard(event)
