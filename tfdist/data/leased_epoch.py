"""One epoch of which this worker takes pieces on lease (`leases.py`)."""

import collections
import contextlib
import threading
import time

from absl import logging

from tfdist.cluster.store import StoreTimeoutError
from tfdist.data.holders import Holder
from tfdist.data.pieces import piece

# A lease is written anew when a batch is finished, but not more often than takes this fraction of the time, unless that
# is seldom: what a lost worker has finished since is trained on twice.
_WRITING_FRACTION = 0.02
_SELDOM_SECONDS = 0.01
_WAIT_SECONDS = 0.1  # then it is seen whether somebody was lost
_PAUSE_SECONDS = 0.02
_WATCH_SECONDS = 1.0
_ENDLESS = 2**53


class LeasedEpoch:
    """An epoch of which this worker takes pieces; made by `Leases.open`.

    Thread-safe: one thread takes while another finishes. `rest` blocks until every other worker has finished what it holds
    or is lost, at most the timeout of `leases`.
    """

    def __init__(self, leases, name, table, is_stream):
        self._leases, self._name, self._table, self._is_stream = leases, name, table, is_stream
        self._key = f"{name}/held/{leases.me}"
        self._first = None  # ranks with whose pieces this worker may begin
        self._tried = set()  # counters that need not be raised again
        self._lock = threading.Lock()  # the rest; leases reach the store in the order in which they are written
        self._held = collections.deque()  # [first, stop] of batches, in the order in which they were taken
        self._pending = None  # the same, of what `rest` has taken and not handed out
        self._num_finished = 0
        self._has_left = False

    def take(self):
        """Returns the next piece, `(first batch, number of batches)`; the number is 0 at the end."""
        if self._first is None:
            self._first = self._beginnings()
        while self._first:
            taken = self._take_first(self._first.pop(0))
            if taken:
                return taken
        return self._take_next() or (0, 0)

    def finished(self, num_batches):
        """Notes that the first `num_batches` of those from `take` have been trained on, in a round trip to the store.

        Returns:
          float, the `time.time()` from which on it takes little of the time to call it again.
        """
        with self._lock:
            while self._held and self._num_finished < num_batches:
                self._num_finished += 1
                self._held[0][0] += 1
                if self._held[0][0] == self._held[0][1]:
                    self._held.popleft()
            begin = time.time()
            if self._num_finished and not self._has_left:
                self._write()
            end = time.time()
        return end + min((end - begin) / _WRITING_FRACTION, _SELDOM_SECONDS)

    def rest(self):
        """Takes a batch that others have left behind; all that was taken before has been trained on.

        Returns:
          `(batch, 1)`, or `(0, 0)` when nobody can leave anything behind any more.
        """
        with self._lock:
            self._held.clear()
            if self._pending:
                return self._hand_out(*self._pending)
            if not self._has_left:
                self._write(is_done=True)
        deadline = time.monotonic() + self._leases.timeout
        while not self._has_left:
            num_tried = len(self._tried)
            members, leases = self._look()
            taken = self._take_again(members, leases)
            if taken:
                return taken
            if len(self._tried) > num_tried:
                continue  # somebody else was faster: its lease has it now
            awaited = members.awaited(leases, self._leases.me)
            if not awaited:
                break
            if time.monotonic() > deadline:
                logging.warning(
                    "tfdist: %s ends without the batches that others hold. Waited %g s for rank %s.",
                    self._name, self._leases.timeout, ", ".join(str(holder.rank) for holder in awaited),
                )  # fmt: skip
                break
            self._leases.watch(_WATCH_SECONDS)
            self._wait_for(awaited[0])
        return 0, 0

    def leave(self):
        """Nobody waits for this worker any longer, nor trains on what it holds or takes from now on, should it be lost."""
        with self._lock:
            if self._has_left or self._first is None:
                return
            self._held.clear()
            self._write(is_done=True)
            self._has_left = True
        if self._is_stream:
            self._tell_what_is_left_out(*self._look())

    def _beginnings(self):
        """The ranks whose first pieces are for the taking: its own, and those of who does not take part."""
        members, me = self._leases.members(), self._leases.me.rank
        return [rank for rank in range(self._leases.world_size) if rank == me or not members.takes_part(rank)]

    def _take_first(self, rank):
        first, count = piece(self._table, rank)
        is_mine = count and self._claim(f"{self._name}/first/{rank}", 1, f"{first}-{first + count}", first, count)
        return (first, count) if is_mine else None

    def _take_next(self):
        world_size = self._leases.world_size
        most = _ENDLESS if self._table is None else len(self._table) - world_size
        if most <= 0:
            return None
        with self._lock:
            total = self._take_counter(self._name, most, "p#")
            if total > most:
                return None
            first, count = piece(self._table, world_size - 1 + total)
            self._held.append([first, first + count])
        return first, count

    def _claim(self, counter, most, text, first, count):
        """Takes batches that only one worker may have; returns whether it is this one."""
        if counter in self._tried:
            return False
        self._tried.add(counter)
        with self._lock:
            if self._take_counter(counter, most, text) > most:
                return False
            self._held.append([first, first + count])
        return True

    def _take_counter(self, counter, most, text):
        if self._is_stream:  # nobody tells what is finished, but all before the newest is
            while len(self._held) > 1:
                self._held.popleft()
        lease = "" if self._has_left else f"{self._text()} {text}"
        return self._leases.client().take(counter, self._key, lease.encode(), most)

    def _text(self):
        return " ".join(f"{first}-{stop}" for first, stop in self._held)

    def _write(self, is_done=False):
        client = self._leases.client()
        client.set(self._key, self._text().encode())
        if is_done:
            client.set(f"{self._name}/done/{self._leases.me}", b"")

    def _hand_out(self, first, stop):
        """Hands out one of the batches first .. stop - 1, which only this worker has."""
        self._held.append([first, stop])
        self._pending = (first + 1, stop) if first + 1 < stop else None
        if not self._has_left:
            self._write()
        return first, 1

    def _look(self):
        """Returns the `Members`, and a dict of `Holder` to its batches, a list of `(first, stop)`."""
        members = self._leases.members()  # first: the lease of who is lost by now does not change any more
        prefix, leases = f"{self._name}/held/", {}
        for key, text in self._leases.client().items(prefix).items():
            holder = Holder(*map(int, key.removeprefix(prefix).split(".")))
            leases[holder] = [self._batches(part) for part in text.decode().split()]
        return members, leases

    def _batches(self, part):
        if part.startswith("p"):
            first, count = piece(self._table, self._leases.world_size - 1 + int(part[1:]))
            return first, first + count
        first, stop = part.split("-")
        return int(first), int(stop)

    def _take_again(self, members, leases):
        for rank in range(self._leases.world_size):
            if not members.takes_part(rank):
                taken = self._take_first(rank)
                if taken:
                    first, count = taken
                    self._pending = (first + 1, first + count) if count > 1 else None
                    logging.info("tfdist: rank %d does not take part in %s: batches %d to %d are trained on here.",
                                 rank, self._name, first, first + count - 1)  # fmt: skip
                    return first, 1
        for holder, held in leases.items():
            if not members.is_lost(holder) or not held:
                continue
            for batch in (batch for first, stop in held for batch in range(first, stop)):
                if self._claim(f"{self._name}/again/{holder}/{batch}", 1, f"{batch}-{batch + 1}", batch, 1):
                    note = f"; rank {holder.rank} may have done so already" if batch == held[0][0] else ""
                    logging.info("tfdist: rank %d was lost: batch %d of %s is trained on here%s.",
                                 holder.rank, batch, self._name, note)  # fmt: skip
                    return batch, 1
        return None

    def _tell_what_is_left_out(self, members, leases):
        """Says what nobody can train on any more, once in the job."""
        for holder, held in leases.items():
            counter = f"{self._name}/again/{holder}/all"
            if not held or not members.is_lost(holder) or self._leases.client().add(counter, 1) > 1:
                continue
            logging.warning(
                "tfdist: rank %d was lost. What it had not trained on of the batches %s of %s is left out: a dataset does not go back.",
                holder.rank, ", ".join(f"{first} to {stop - 1}" for first, stop in held), self._name,
            )  # fmt: skip

    def _wait_for(self, holder):
        with contextlib.suppress(StoreTimeoutError):
            self._leases.client("wait").get(f"{self._name}/done/{holder}", timeout=_WAIT_SECONDS)
            time.sleep(_PAUSE_SECONDS)  # it has been done before, and has taken something again
