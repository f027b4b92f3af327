"""Watches the workers and servers of this host until the job is over; ends it when one fails or the user asks to."""

import dataclasses
import signal
import time

from tfdist.launch import failure as failures
from tfdist.launch.events import ADD_WORKER, BROKEN_PIPE, FORWARDED

_FIRST_LOOK_SECONDS = 0.3  # the cause may be seen just after its first consequence
_LAST_LOOK_SECONDS = 1.0
_GRACE_SECONDS = 3.0
_RECENT_SECONDS = 60.0  # a loss that was survived longer ago does not explain a failure
_SERVER_SECONDS = 10.0  # after a job that went well: servers write their statistics
_POLL_SECONDS = 0.1


class Supervisor:
    """Runs a job to its end; use it once.

    Args:
      job: a `Job`.
      store: its `JobStore`.
      crew: its `Crew`, of which nobody has been started.
      events: the `Events`.
      recovery: its `Recovery`.
    """

    def __init__(self, job, store, crew, events, recovery):
        self._job, self._store, self._crew, self._events, self._recovery = job, store, crew, events, recovery

    def run(self):
        """Starts all, waits for the end of the workers, then ends the servers.

        Returns:
          `(exit_code, text)`: text tells the user why, or who is missing after success; None where all went well.
        """
        self._began = time.time()
        self._crew.start_all()
        while not self._is_over():
            event = self._next_event(self._wait_seconds())
            if event == ADD_WORKER:
                self._recovery.add_worker()
                continue
            if isinstance(event, str):
                return self._stop_by(event)
            if event is not None and (event.is_server or event.process.exit_code != 0):
                if not self._recovery.survives(event):
                    return self._fail(event)
            reason = self._recovery.look()
            if reason:
                self._stop(signal.SIGTERM, self._job.grace_seconds)
                return 1, f"tfdist run: {reason}"
        self._end(self._crew.workers, signal.SIGTERM, _GRACE_SECONDS)  # those that were dismissed
        self._end(self._crew.servers, signal.SIGTERM, _SERVER_SECONDS)
        return 0, self._recovery.epilogue()

    def _is_over(self):
        if any(slot.is_wanted for slot in self._crew.workers):
            return False
        serves_others = self._job.node_rank == 0 and self._job.num_nodes > 1 and self._job.recovers
        return not (self._crew.servers or serves_others) or self._store.others_have_ended()

    def _wait_seconds(self):
        if any(slot.is_wanted for slot in self._crew.workers):
            return self._recovery.next_look_seconds()
        return _POLL_SECONDS  # other hosts' workers make no event here

    def _next_event(self, seconds):
        """Returns a signal's name, the slot whose process has ended, or None when `seconds` have passed without either."""
        event = self._events.next(seconds)
        return event if event is None or isinstance(event, str) else self._crew.note_end(event)

    def _stop_by(self, event):
        is_patient = event in ("SIGTERM", "SIGHUP")
        number = getattr(signal, event if event in FORWARDED else "SIGTERM")
        self._stop(number, self._job.grace_seconds if is_patient else _GRACE_SECONDS)
        self._recovery.leave()
        text = None if event == BROKEN_PIPE else f"tfdist run: stopped by {event}."
        return 128 + getattr(signal, event), text

    def _fail(self, slot):
        self._recovery.tell_failed()
        refusal = self._recovery.refusal
        if refusal:
            culprit = slot.loss
            self._stop(signal.SIGTERM, self._job.grace_seconds)
        else:
            self._look_around()
            culprit = failures.find_culprit(self._failures())
            self._stop(signal.SIGTERM, _GRACE_SECONDS)
            culprit = self._with_last_lines(culprit)
        self._recovery.await_others()
        text = failures.describe(culprit, self._job.world_size, max(0.0, culprit.time - self._began), refusal)
        return failures.exit_code(culprit), text

    def _with_last_lines(self, culprit):
        """Returns the failure with the last lines of its process, which are complete only when it is finished."""
        for slot in self._crew.servers if culprit.is_server else self._crew.workers:
            if slot.rank == culprit.rank and slot.process is not None and culprit != slot.loss:
                slot.process.finish()
                return dataclasses.replace(culprit, last_errors=tuple(slot.process.last_errors()))
        return culprit

    def _look_around(self):
        """Waits a little for the cause of what has been seen so far."""
        begin = time.monotonic()
        while True:
            only_consequences = all(failure.is_consequence for failure in self._failures())
            suspects = (*self._crew.workers, *self._crew.servers) if only_consequences else self._crew.workers
            patience = _LAST_LOOK_SECONDS if only_consequences else _FIRST_LOOK_SECONDS
            if not _are_running(suspects) or time.monotonic() - begin >= patience:
                return
            self._next_event(0.05)

    def _failures(self):
        """Returns what may be the cause: losses that the job has survived only where nothing else explains the rest."""
        reports = self._store.reports()
        slots = (*self._crew.workers, *self._crew.servers)
        found = []
        for slot in slots:
            told = None if slot.is_server else reports.pop(slot.rank, None)
            if slot.process is not None and not slot.is_lost and not slot.is_dismissed:
                found.append(_failure_of(slot, told))
        # What is left are workers of other hosts.
        found += [failures.Failure(rank, 1, told["time"], told) for rank, told in reports.items()]
        found = [failure for failure in found if failure is not None]
        if any(not failure.is_consequence for failure in found):
            return found
        begin = min((failure.time for failure in found), default=0.0) - _RECENT_SECONDS
        blamed = {failure.lost_rank for failure in found}
        losses = [slot.loss for slot in slots if slot.loss is not None and slot.loss.time >= begin]
        return found + [loss for loss in losses if loss.is_server or loss.rank in blamed]

    def _stop(self, number, seconds):
        """Ends the workers, then the servers, which the workers may need for what they still do."""
        is_patient = self._end(self._crew.workers, number, seconds)
        if self._crew.servers:
            for slot in self._crew.workers:
                if slot.process is not None:
                    slot.process.finish()
            self._end(self._crew.servers, signal.SIGTERM, _GRACE_SECONDS if is_patient else 0.0)

    def _end(self, slots, number, seconds):
        """Asks processes to end, and gives them time; the crew kills the rest. Returns False if asked to hurry."""
        for slot in slots:
            if slot.is_running:
                slot.process.send(number)
        deadline = time.monotonic() + seconds
        while _are_running(slots) and time.monotonic() < deadline:
            if self._next_event(max(0.0, deadline - time.monotonic())) == "SIGINT":
                return False  # asked twice
        return True


def _are_running(slots):
    return any(slot.is_running for slot in slots)


def _failure_of(slot, told):
    """Returns the `Failure` of a place's process, or None where it has not failed; `told`: its report."""
    process = slot.process
    if told is not None and told["time"] < process.started:
        told = None  # of an earlier process
    if process.exit_code is None and told is None or process.exit_code == 0 and told is None and not slot.is_server:
        return None
    code = process.exit_code if slot.is_server else process.exit_code or 1  # it has told why, and is about to end
    when = told["time"] if told else process.ended
    return failures.Failure(slot.rank, code, when, told, tuple(process.last_errors()), slot.is_server)
