"""All workers stop between the same two steps, once one of them has been told to end."""

import contextlib
import threading
import time

from tfdist.cluster.frames import MAX_WAIT_SECONDS
from tfdist.errors import TfdistError

_ACKNOWLEDGE_SECONDS = 1.0


class StopAgreement:
    """Where the workers of a job stop.

    A *boundary* is a place between two steps that all workers pass, in the same order: a tuple that grows, such as (epoch,
    step). The first worker that wants to stop at boundary b says so in the store and waits until the others have heard of it;
    then all stop at the boundary after b. Where every step takes all workers, none of them can have passed that one by then,
    as that worker has not begun the step before it. Workers that are not in step are told to at the next boundary that each
    comes to, and have to meet at a barrier before one ends, as others may be on their way to it. It costs nothing until somebody stops: a thread listens to the store.

    Args:
      connect: function of no arguments that returns a new `StoreClient`; None for a worker alone.
      name: str, the same on all workers and of this training alone.
      rank: int.
      members: function of no arguments that returns the ranks that there are now.
      is_in_step: bool, whether every step takes all workers.
    """

    def __init__(self, connect, name, rank, members, is_in_step):
        self._connect = connect
        self._key = f"tfdist/stop/{name}"
        self._rank = rank
        self._members = members
        self._is_in_step = is_in_step
        self._after = None  # the boundary after which all stop; written by the listener too, at once
        self._listener = None
        if connect is not None:
            self._listener = connect()
            threading.Thread(target=self._listen, args=(self._listener,), name="tfdist-stop", daemon=True).start()

    def reached(self, boundary, is_asked):
        """Returns whether to stop at this boundary.

        Args:
          boundary: tuple of ints.
          is_asked: bool, whether this worker has been told to end.
        """
        if is_asked and self._after is None:
            self._after = self._announce(boundary)
        return self._after is not None and tuple(boundary) > self._after

    @property
    def needs_meeting(self):
        """Whether workers may end only behind a barrier."""
        return self._listener is not None and not self._is_in_step

    def is_announced(self):
        """Asks the store whether anybody wants to stop: behind a barrier all get the same answer."""
        if self._after is None:
            self._ask(self._look)
        return self._after is not None

    def _look(self, store):
        if store.try_get(f"{self._key}/after") is not None:
            self._after = ()

    def finished(self):
        """Tells the others that what was to be done before the end is done."""
        self._ask(lambda store: store.set(f"{self._key}/finished", b"yes"))

    def wait_finished(self, timeout):
        """Waits until somebody calls `finished`, at most `timeout` seconds."""
        self._ask(lambda store: store.get(f"{self._key}/finished", timeout=timeout))

    def leave(self):
        """Tells that this worker needs nothing any more that the chief provides."""
        self._ask(lambda store: store.set(f"{self._key}/left/{self._rank}", b"yes"))

    def wait_left(self, timeout):
        """Waits until all others have called `leave`, at most `timeout` seconds."""
        self._ask(lambda store: self._await_others(store, "left", timeout))

    def close(self):
        """Ends the listener. Calling it again does nothing."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _announce(self, boundary):
        after = tuple(boundary) if self._listener is not None and self._is_in_step else ()

        def announce(store):
            store.set(f"{self._key}/after", ",".join(map(str, after)).encode())
            self._await_others(store, "heard", _ACKNOWLEDGE_SECONDS)

        self._ask(announce)
        return after

    def _await_others(self, store, what, timeout):
        deadline = time.monotonic() + timeout
        for other in set(self._members()) - {self._rank}:
            store.get(f"{self._key}/{what}/{other}", timeout=max(0.0, deadline - time.monotonic()))

    def _listen(self, listener):
        with contextlib.suppress(TfdistError):
            after = listener.get(f"{self._key}/after", timeout=MAX_WAIT_SECONDS).decode()
            self._after = tuple(map(int, after.split(","))) if after else ()
            listener.set(f"{self._key}/heard/{self._rank}", b"yes")

    def _ask(self, request):
        """Makes requests on a connection of its own; that the store or a worker is gone does not matter at the end."""
        if self._connect is None:
            return
        with contextlib.suppress(TfdistError), self._connect() as store:
            request(store)
