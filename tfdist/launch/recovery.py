"""What happens when a worker or server is lost: the others are told, and its place is filled again."""

import signal
import time

from tfdist.launch import failure as failures
from tfdist.launch.nodes import Nodes
from tfdist.launch.restarts import Record, decide

EXIT_AGAIN = 75  # EX_TEMPFAIL: "I was excluded, start me again"
_LOOK_SECONDS = 1.0
_EAGER_LOOK_SECONDS = 0.1  # workers that have just started, and ask for servers, are to wait for little
_EAGER_SECONDS = 120.0
_RETRY_SECONDS = 10.0
_EXCLUDED_SECONDS = 5.0  # for a worker to see by itself that it was excluded; one that has stopped does not


class Recovery:
    """Decides which losses the job survives, and restarts what was lost. Not thread safe.

    Args:
      job: a `Job`.
      store: its `JobStore`.
      crew: its `Crew`.
      say: called with the text of a line for the user.
    """

    def __init__(self, job, store, crew, say):
        self._job, self._store, self._crew, self._say = job, store, crew, say
        self._rules = job.restarts
        self._nodes = Nodes(job, store)
        self._excluded = {}  # (slot, incarnation) -> when it was first seen to be excluded
        self._began = time.monotonic()
        self._addresses = {}  # server's slot -> its address in the store when it was started
        self.refusal = ""  # why the last loss was not forgiven

    def survives(self, slot):
        """Returns whether the job goes on after the end of a process other than well; arranges for it if so."""
        if self._rules is None or slot.is_dismissed:
            return slot.is_dismissed
        code = slot.process.exit_code
        if not (slot.is_server or self._job.recovers) or code >= 0 and code != EXIT_AGAIN:
            return self._is_late_joiner(slot)
        if not slot.is_server:
            self._store.tell_lost(slot.rank, slot.incarnation)  # first: the others wait for it
            if code != EXIT_AGAIN and self._has_reported(slot):
                return False
        self._crew.bury(slot)
        if not slot.is_server and self._store.is_over():
            slot.is_given_up = True
            self._say(f"{_name(slot)} {self._manner(slot)} when the job had ended.")
            return True
        return self._replace(slot)

    def look(self):
        """Starts what is due, and ends what the job has no use for any more. To be called after every event.

        Returns:
          Why the job cannot go on, because of what happened on other hosts, or "".
        """
        if self._rules is None:
            return ""
        self._end_excluded()
        self._start_requested()
        waiting = [slot for slot in (*self._crew.workers, *self._crew.servers) if slot.restart_at is not None]
        joiners = self._running_joiners()
        if (waiting or joiners) and self._store.is_over():
            self._dismiss(joiners, [slot for slot in waiting if not slot.is_server])
        for slot in waiting:
            if slot.restart_at is not None and slot.restart_at <= time.monotonic():
                self._start(slot)
        if self._nodes.is_alone or not self._job.recovers:
            return ""
        return self._nodes.exchange(self._num_live()) or self._shortage()

    def next_look_seconds(self):
        """Returns how long the next look can wait for want of an event; None: for ever."""
        slots = (*self._crew.workers, *self._crew.servers)
        waits = [slot.restart_at - time.monotonic() for slot in slots if slot.restart_at is not None]
        if self._job.recovers:
            waits.append(self._look_seconds())  # at what the workers and other hosts write into the store
        return max(0.0, min(waits)) if waits else None

    def add_worker(self):
        """Starts a worker in a free place, if there is one."""
        slot = next((slot for slot in self._crew.workers if slot.is_free), None)
        if slot is None:
            self._say(f"no worker is added: all {self._job.local_world_size} places are taken, see --max-workers.")
        elif self._store.is_over():
            self._say("no worker is added: the job has ended.")
        else:
            slot.record = Record()
            slot.incarnation = max(slot.incarnation, 0)  # it is none of those that the job started with
            self._start(slot)
            self._say(f"{_name(slot)} is added.")

    def leave(self):
        """Tells the others that the workers of this host, which have ended, are lost: the job goes on without it."""
        if self._job.recovers and not self._nodes.is_alone:
            for slot in self._crew.workers:
                if slot.process is not None:
                    self._store.tell_lost(slot.rank, slot.incarnation)
            self._nodes.exchange(0)

    def tell_failed(self):
        """Tells the others that the job fails here."""
        if self._job.recovers:
            self._nodes.tell_failed()

    def await_others(self):
        """Gives the others a moment to hear of it."""
        if self._job.recovers:
            self._nodes.await_others()

    def epilogue(self):
        """Returns what to tell at the end of a job that went well, or None."""
        lost = [str(slot.rank) for slot in self._crew.workers if slot.is_given_up]
        if not lost:
            return None
        return f"tfdist run: ended well without rank{'s' if len(lost) > 1 else ''} {', '.join(lost)}, lost for good."

    def _running_joiners(self):
        return [
            slot for slot in self._crew.workers if slot.incarnation > 0 and slot.is_running and not slot.is_dismissed
        ]

    def _has_reported(self, slot):
        """Returns whether the script failed by itself: an interpreter may crash on its way out, after an exception."""
        told = self._store.reports().get(slot.rank)
        return told is not None and told["time"] >= slot.process.started

    def _is_late_joiner(self, slot):
        """Returns whether it failed only because the job was over before it could take part."""
        if slot.is_server or slot.incarnation < 1 or self._has_joined(slot) or not self._store.is_over():
            return False
        slot.is_dismissed = True
        return True

    def _replace(self, slot):
        life, limit = slot.process.ended - slot.process.started, self._rules.max_restarts
        delay, why = decide(slot.record, limit, life, self._has_joined(slot))
        if delay is None:
            slot.is_given_up = True
            what = f"it is not started again, for {why}"
        else:
            slot.restart_at = time.monotonic() + delay
            what = f"it is started again in {delay:.1f} s ({slot.record.restarts} of {limit})"
        if slot.is_server and delay is None:
            self.refusal = f"It is not started again, for {why}."
        else:
            self.refusal = self._shortage()
        if self.refusal:
            return False
        self._say(f"{_name(slot)} {self._manner(slot)} after {life:.1f} s; {what}.")
        return True

    def _num_live(self):
        return sum(slot.process is not None and not slot.is_given_up for slot in self._crew.workers)

    def _shortage(self):
        """Returns why the job cannot go on with the workers that are left, or ""."""
        live, floor = self._num_live() + self._nodes.live_elsewhere(), self._rules.min_workers
        if live < floor:
            return f"{live} worker{'' if live == 1 else 's'} left, fewer than --min-workers {floor}: the job ends."
        keeps_state = not self._nodes.is_alone or any(map(self._has_state, self._crew.workers))
        if not keeps_state:
            return (
                "No worker is left that has the state of the training: the job ends. Start it again from a checkpoint."
            )
        return ""

    def _has_state(self, slot):
        if slot.is_running:
            return slot.incarnation == 0 or self._has_joined(slot)
        return slot.process is not None and slot.process.exit_code == 0

    def _look_seconds(self):
        expects_request = self._job.starts_requested_servers and not self._crew.servers
        is_eager = expects_request and time.monotonic() - self._began < _EAGER_SECONDS
        return _EAGER_LOOK_SECONDS if is_eager else _LOOK_SECONDS

    def _start_requested(self):
        """Servers that a worker started would end with it."""
        if self._job.starts_requested_servers:
            for _ in range(self._store.servers_wanted() - len(self._crew.servers)):
                self._start(self._crew.add_server())

    def _start(self, slot):
        if slot.is_server:
            self._addresses[slot] = self._store.server_address(slot.rank)
        try:
            self._crew.start(slot)
        except OSError as error:  # no memory, or no process is left
            slot.record.restarts += 1
            slot.is_given_up = slot.record.restarts > self._rules.max_restarts
            slot.restart_at = None if slot.is_given_up else time.monotonic() + _RETRY_SECONDS
            what = "given up" if slot.is_given_up else f"tried again in {_RETRY_SECONDS:g} s"
            self._say(f"{_name(slot)} could not be started ({error}); {what}.")

    def _has_joined(self, slot):
        if slot.is_server:
            address = self._store.server_address(slot.rank)
            return address is not None and address != self._addresses.get(slot)
        return self._store.joined().get(slot.rank) == slot.incarnation

    def _end_excluded(self):
        excluded, now = self._store.excluded(), time.monotonic()
        for slot in self._crew.workers:
            if slot.is_running and excluded.get(slot.rank) == slot.incarnation:
                since = self._excluded.setdefault((slot, slot.incarnation), now)
                if now - since >= _EXCLUDED_SECONDS:
                    slot.process.send(signal.SIGKILL)

    def _manner(self, slot):
        if slot.process.exit_code == EXIT_AGAIN:
            return "was excluded"
        if (slot, slot.incarnation) in self._excluded:
            return "was excluded and stood still"
        return failures.manner(slot.process.exit_code)

    def _dismiss(self, joiners, waiting):
        for slot in joiners:
            if not self._has_joined(slot):
                slot.is_dismissed = True
                slot.process.send(signal.SIGTERM)
        for slot in waiting:
            slot.restart_at, slot.is_given_up = None, True


def _name(slot):
    return f"server {slot.rank}" if slot.is_server else f"rank {slot.rank}"
