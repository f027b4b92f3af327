"""Who may go on, and which gradients count: the three ways to wait, as state machines without clocks or threads.

The parameter server (native) and the simulator follow them. A worker's step is: `may_start`, `start` (it pulls), a
gradient, `push`. Nothing here blocks: a caller whose worker may not start asks again after each push.
"""

import abc
import enum

from tfdist.errors import ConfigurationError
from tfdist.staleness.checks import expect_count


class Verdict(enum.Enum):
    """What becomes of a pushed gradient."""

    APPLY = "apply"  # an update of its own, now
    COLLECT = "collect"  # part of a step that still waits for others
    COMPLETE = "complete"  # the last part of its step: the mean of all parts is applied now
    DROP = "drop"  # came too late, is thrown away


class AbstractWaiting(abc.ABC):
    """A waiting rule; `begin` first. Not safe for concurrent use: the caller has a lock."""

    @abc.abstractmethod
    def begin(self, num_workers):
        """Starts anew with workers 0 to num_workers - 1; raises ConfigurationError where the rule does not fit them."""

    @abc.abstractmethod
    def may_start(self, worker):
        """Returns whether the worker may pull and compute now."""

    @abc.abstractmethod
    def start(self, worker):
        """The worker pulls now."""

    @abc.abstractmethod
    def push(self, worker):
        """Returns the `Verdict` on the gradient of the worker's last start."""

    @abc.abstractmethod
    def leave(self, worker):
        """The worker has no more data: nobody waits for it.

        Returns:
          Whether that completes a step: the mean of what is collected is to be applied now.
        """


class Asynchronous(AbstractWaiting):
    """Nobody waits; every gradient is an update of its own (Downpour SGD: Dean et al., NIPS 2012).

    Fastest by far where one worker is slow for good. Staleness is about num_workers - 1, more for a straggler's.
    """

    def begin(self, num_workers):
        """See `AbstractWaiting`."""

    def may_start(self, worker):
        """Always."""
        return True

    def start(self, worker):
        """See `AbstractWaiting`."""

    def push(self, worker):
        """Always APPLY."""
        return Verdict.APPLY

    def leave(self, worker):
        """See `AbstractWaiting`."""
        return False


class Bounded(AbstractWaiting):
    """Asynchronous, but a worker more than s steps ahead of the slowest waits for it (stale synchronous parallel).

    Workers that stumble now and then do not hold up the others; a worker that is slow for good does, as in synchronous
    training. s = 0 is lockstep, with an update for every gradient.

    Args:
      staleness_bound: int >= 0, the s of the paper.

    Raises:
      ConfigurationError: not such an integer.

    Paper: Ho et al., "More effective distributed ML via a stale synchronous parallel parameter server", NIPS 2013,
    section 3.
    """

    def __init__(self, staleness_bound):
        self.staleness_bound = expect_count("staleness_bound", staleness_bound)
        self._clocks = {}  # worker -> gradients pushed
        self._slowest = 0  # the least of them

    def begin(self, num_workers):
        """See `AbstractWaiting`."""
        self._clocks, self._slowest = dict.fromkeys(range(num_workers), 0), 0

    def may_start(self, worker):
        """Whether the worker is at most s steps ahead of the slowest."""
        return self._clocks[worker] - self._slowest <= self.staleness_bound

    def start(self, worker):
        """See `AbstractWaiting`."""

    def push(self, worker):
        """Always APPLY."""
        self._clocks[worker] += 1
        self._slowest = min(self._clocks.values())
        return Verdict.APPLY

    def leave(self, worker):
        """See `AbstractWaiting`."""
        self._clocks.pop(worker, None)
        self._slowest = min(self._clocks.values(), default=0)
        return False


class Synchronous(AbstractWaiting):
    """All workers' gradients of a step make one update, or all but those of the b slowest, which are dropped.

    A worker whose gradient came too late goes on with the current step at once. b = 0 is exact: num_workers gradients
    of batch B are one gradient of batch num_workers B. With b > 0 a step waits for the (num_workers - b)-th worker only,
    at the price of b workers' gradients.

    Args:
      backup_workers: int >= 0, less than the number of workers; the b of the paper.

    Raises:
      ConfigurationError: not such an integer.

    Paper: Chen et al., "Revisiting distributed synchronous SGD", 2016, algorithms 3 and 4.
    """

    def __init__(self, backup_workers=0):
        self.backup_workers = expect_count("backup_workers", backup_workers)
        self._step, self._collected = 0, 0
        self._step_of, self._next_step_of = {}, {}  # worker -> step it computes for; the first it may start

    def begin(self, num_workers):
        """See `AbstractWaiting`."""
        if self.backup_workers >= num_workers:
            raise ConfigurationError(
                f"backup_workers is expected to be less than the number of workers, {num_workers}. Received: "
                f"backup_workers={self.backup_workers}. Lower it, or start more workers."
            )
        self._step, self._collected = 0, 0
        self._step_of, self._next_step_of = {}, dict.fromkeys(range(num_workers), 0)

    def may_start(self, worker):
        """Whether the step that the worker has last contributed to is over."""
        return self._next_step_of[worker] <= self._step

    def start(self, worker):
        """See `AbstractWaiting`."""
        self._step_of[worker] = self._step

    def push(self, worker):
        """COLLECT or COMPLETE, or DROP where the step is over."""
        if self._step_of[worker] < self._step:
            return Verdict.DROP
        self._next_step_of[worker] = self._step + 1
        self._collected += 1
        return Verdict.COMPLETE if self._complete() else Verdict.COLLECT

    def leave(self, worker):
        """See `AbstractWaiting`; what the worker has contributed to the current step still counts."""
        self._next_step_of.pop(worker, None)
        return self._collected > 0 and self._complete()

    def _complete(self):
        if self._collected < len(self._next_step_of) - self.backup_workers:
            return False
        self._step, self._collected = self._step + 1, 0
        return True


WAITING = {"async": Asynchronous, "bounded": Bounded, "sync": Synchronous}  # mode -> rule
