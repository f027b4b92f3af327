"""Watches the workers and servers of this host until the job is over; ends it when one fails or the user asks to."""

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
_SERVER_SECONDS = 10.0  # after a job that went well: servers write their statistics
_POLL_SECONDS = 0.1
_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP")
_BROKEN_PIPE = "SIGPIPE"


class Supervisor:
    """Runs a job to its end; use it once.

    Args:
      world_size: int, workers on all hosts.
      read_reports: returns {rank: report} of the workers that have reported why they fail.
      others_have_ended: returns whether the workers of other hosts have ended; asked where there are servers.
    """

    def __init__(self, world_size, read_reports, others_have_ended=lambda: True):
        self._world_size = world_size
        self._read_reports = read_reports
        self._others_have_ended = others_have_ended
        self._events = queue.SimpleQueue()  # safe to fill from a signal handler
        self._workers, self._servers = (), ()
        self._running = set()

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

    def run(self, workers, servers=()):
        """Waits for the end of the workers, then ends the servers.

        Args:
          workers: list of `Worker`.
          servers: list of `Worker` that are to live as long as the workers of all hosts do.

        Returns:
          `(exit_code, text)`: text tells the user why, and is None after success.
        """
        self._workers, self._servers = tuple(workers), tuple(servers)
        self._running = {*workers, *servers}
        while not self._is_over():
            event = self._next_event()
            if isinstance(event, str):
                self._stop(getattr(signal, event if event in _FORWARDED else "SIGTERM"))
                text = None if event == _BROKEN_PIPE else f"tfdist run: stopped by {event}."
                return 128 + getattr(signal, event), text
            if event is not None and (event in self._servers or event.exit_code != 0):
                return self._fail()
        self._end(self._servers, signal.SIGTERM, _SERVER_SECONDS)
        return 0, None

    def _is_over(self):
        return not self._are_running(self._workers) and (not self._servers or self._others_have_ended())

    def _are_running(self, processes):
        return not self._running.isdisjoint(processes)

    def _next_event(self, seconds=None):
        """Returns a signal's name, a process that has ended, or None when `seconds` have passed without either."""
        if seconds is None and not self._are_running(self._workers):
            seconds = _POLL_SECONDS  # other hosts' workers make no event here
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return None
        self._running.discard(event)
        return event

    def _fail(self):
        self._look_around()
        culprit = failures.find_culprit(self._failures())
        self._stop(signal.SIGTERM)
        for process in self._servers if culprit.is_server else self._workers:
            process.finish()
            if process.rank == culprit.rank:  # its last lines are complete only now
                culprit = dataclasses.replace(culprit, last_errors=tuple(process.last_errors()))
        seconds = culprit.time - min(process.started for process in (*self._workers, *self._servers))
        text = failures.describe(culprit, self._world_size, max(0.0, seconds))
        return failures.exit_code(culprit), text

    def _look_around(self):
        """Waits a little for the cause of what has been seen so far."""
        begin = time.monotonic()
        while True:
            only_consequences = all(failure.is_consequence for failure in self._failures())
            suspects = (*self._workers, *self._servers) if only_consequences else self._workers
            patience = _LAST_LOOK_SECONDS if only_consequences else _FIRST_LOOK_SECONDS
            if not self._are_running(suspects) or time.monotonic() - begin >= patience:
                return
            self._next_event(0.05)

    def _failures(self):
        reports = self._read_reports()
        found = []
        for worker in self._workers:
            told = reports.pop(worker.rank, None)
            if worker.exit_code not in (None, 0) or told:
                code = worker.exit_code or 1  # it has told why, and is about to end
                when = told["time"] if told else worker.ended
                found.append(failures.Failure(worker.rank, code, when, told, tuple(worker.last_errors())))
        for server in self._servers:
            if server.exit_code is not None:
                errors = tuple(server.last_errors())
                found.append(failures.Failure(server.rank, server.exit_code, server.ended, None, errors, True))
        # What is left are workers of other hosts.
        return found + [failures.Failure(rank, 1, told["time"], told) for rank, told in reports.items()]

    def _stop(self, number):
        """Ends the workers, then the servers, which the workers may need for what they still do."""
        is_patient = self._end(self._workers, number, _GRACE_SECONDS)
        if self._servers:
            for worker in self._workers:
                worker.finish()
            self._end(self._servers, signal.SIGTERM, _GRACE_SECONDS if is_patient else 0.0)

    def _end(self, processes, number, seconds):
        """Asks processes to end, and gives them time; `Worker.finish` kills the rest. Returns False if asked to hurry."""
        for process in self._running.intersection(processes):
            process.send(number)
        deadline = time.monotonic() + seconds
        while self._are_running(processes) and time.monotonic() < deadline:
            if self._next_event(max(0.0, deadline - time.monotonic())) == "SIGINT":
                return False  # asked twice
        return True
