"""Trains a task with workers and a server in virtual time."""

import dataclasses

import numpy as np

from tfdist.simulate.events import EventQueue
from tfdist.simulate.network import Network
from tfdist.simulate.server import Server
from tfdist.staleness import Verdict
from tfdist.staleness.checks import expect, expect_count


@dataclasses.dataclass(frozen=True)
class Result:
    """What came out.

    Args:
      seconds: float, virtual time.
      num_gradients: int, gradients that became part of an update.
      num_updates: int.
      num_dropped: int, gradients that came too late.
      staleness: Counter, gradients by staleness.
      waited_seconds: list of float, by worker: how long its pulls were held back.
      theta: float array, the parameters in the end.
      error: float, the task's.
    """

    seconds: float
    num_gradients: int
    num_updates: int
    num_dropped: int
    staleness: dict
    waited_seconds: list
    theta: np.ndarray
    error: float

    @property
    def gradients_per_second(self):
        """Gradients that counted, per virtual second."""
        return self.num_gradients / self.seconds if self.seconds else float("inf")

    @property
    def mean_staleness(self):
        """The mean over the gradients that counted."""
        return sum(tau * count for tau, count in self.staleness.items()) / max(1, self.staleness.total())


def train(task, rule, workers, *, num_gradients, network=None, seed=0, break_off=False):
    """Trains until `num_gradients` gradients have counted.

    A step of a worker: its pull is granted (parameters of that moment), they travel, it computes, the gradient travels,
    is pushed, and asks for the next pull. Without waiting it takes compute + 2 (latency + bytes / bandwidth) seconds.

    Args:
      task: an `AbstractTask`.
      rule: a `Rule`.
      workers: sequence of one compute-time function (`workers.py`) a worker.
      num_gradients: int > 0; a synchronous step is finished even where it makes a few more.
      network: a `Network`; by default one that takes no time.
      seed: int, of the compute times.
      break_off: bool; whether a worker stops computing what would come too late, as soon as its step is over, instead
        of finishing it. Chen et al. reckon so (a step takes the time of the (m - b)-th fastest of m); it is the upper
        limit of what backup workers gain.

    Returns:
      A `Result`; the same for the same arguments.

    Raises:
      ConfigurationError: no worker, no gradient, or a waiting rule that does not fit the workers.
    """
    expect(len(workers) > 0, "workers", "at least one compute-time function", workers, "Add some.")
    expect_count("num_gradients", num_gradients, low=1)
    return _Training(task, rule, workers, network or Network(), seed, break_off).run(num_gradients)


class _Training:
    def __init__(self, task, rule, workers, network, seed, break_off):
        self._task, self._workers, self._break_off = task, workers, break_off
        self._server = Server(task.initial(), rule, len(workers))
        self._queue = EventQueue()
        self._random = [np.random.default_rng([seed, worker]) for worker in range(len(workers))]
        self._transfer_seconds = network.seconds(task.num_bytes)
        self._next_batch = 0
        self._computing = {}  # worker -> (parameters, batch)
        self._waiting = dict.fromkeys(range(len(workers)), 0.0)  # worker -> since when
        self._waited_seconds = [0.0] * len(workers)

    def run(self, num_gradients):
        server = self._server
        self._grant(list(self._waiting))
        with np.errstate(over="ignore", invalid="ignore"):  # a rule may diverge: that is a result
            self._queue.run(lambda: server.num_gradients >= num_gradients)
            error = self._task.error(server.theta)
        return Result(
            seconds=self._queue.now,
            num_gradients=server.num_gradients,
            num_updates=server.num_updates,
            num_dropped=server.num_dropped,
            staleness=server.staleness,
            waited_seconds=self._waited_seconds,
            theta=server.theta,
            error=error,
        )

    def _grant(self, asking):
        for worker in asking:
            if self._server.may_start(worker):
                self._waited_seconds[worker] += self._queue.now - self._waiting.pop(worker)
                self._start(worker)

    def _start(self, worker):
        batch, self._next_batch = self._next_batch, self._next_batch + 1
        self._computing[worker] = self._server.pull(worker), batch
        seconds = self._workers[worker](self._random[worker]) + 2 * self._transfer_seconds
        self._queue.after(seconds, lambda: self._arrive(worker, batch))

    def _arrive(self, worker, batch):
        if self._computing.get(worker, (None, None))[1] != batch:
            return  # broken off
        verdict = self._push(worker)
        if verdict is Verdict.COMPLETE and self._break_off:
            for late in list(self._computing):
                self._push(late)
        # Only an update can let others go on.
        self._grant(list(self._waiting) if verdict in (Verdict.APPLY, Verdict.COMPLETE) else [worker])

    def _push(self, worker):
        self._waiting[worker] = self._queue.now
        return self._server.push(worker, self._task.gradient(*self._computing.pop(worker)))
