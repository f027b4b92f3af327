"""A worker of the jobs of `job.py`, without TensorFlow: sums numbers step by step, and tells who had a share in each sum.

worker.py RESULT.json '{"steps": 50, ...}'
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np

from tfdist.cluster import doorman
from tfdist.cluster.handshake import secure
from tfdist.comm import default, library

PLACES = ("form", "handshake", "join")  # where the step does not matter
BEFORE = -1  # a step; the points 0, 1 and 2 of its collective are those of tfdist_group_set_fault


class Worker:
    """Args:
    steps: int; fewer where somebody sets the store's key "stop".
    size: int, of the array.
    faults: list of dicts of `rank`, `step` and `point`, or `drop`; `signal`, `incarnation` and `seconds` of a stop are optional.
    pause: float seconds between two steps.
    is_open: whether workers may join.
    gathers: whether to gather texts instead of summing numbers; a fault is then between the two halves of a gathering.
    """

    def __init__(self, steps=50, size=1000, faults=(), pause=0.002, is_open=False, gathers=False):
        self._steps, self._pause, self._is_open = steps, pause, is_open
        self._gathers = gathers
        incarnation = int(os.environ["TFDIST_INCARNATION"])
        rank = int(os.environ["TFDIST_RANK"])
        self._faults = [f for f in faults if f["rank"] == rank and f.get("incarnation", 0) == incarnation]
        if [fault for fault in self._faults if fault.get("step") is None]:
            os.kill(os.getpid(), signal.SIGKILL)  # before the group has formed
        self._die_in_a_handshake("form")
        self._group = default.default_group()
        self._die_in_a_handshake("handshake")
        self._membership = default.membership()
        self._factors = np.arange(size + 1, dtype=np.float64) % 7 + 1
        self._work = np.empty_like(self._factors)  # the last element says whether to stop
        self._reduce = self._group.prepare_all_reduce(self._work)
        self.masks, self.seconds, self.members = {}, {}, {}

    def run(self):
        return self._gather() if self._gathers else self._sum()

    def _gather(self):
        run = self._group._run

        def run_or_die(collective, work, dtype, *arguments, **options):
            if dtype == "byte" and self._faults:
                os.kill(os.getpid(), signal.SIGKILL)
            run(collective, work, dtype, *arguments, **options)

        self._group._run = run_or_die
        texts = [self._group.all_gather_bytes(b"from %d" % self._group.rank) for _ in range(2)]
        self._group.agree("something", {"a": 1})
        return {"texts": [[text.decode() for text in told] for told in texts]}

    def _sum(self):
        step, first = 0, 0
        self._die_when_somebody_joins()
        if self._membership.is_joining:
            self._membership.join()
            step = first = self._meet(0)
        stop = False
        with self._membership.store() as store:
            while step < self._steps and not stop:
                while self._is_open and self._membership.admit():  # who has joined asks next, so all do
                    self._meet(step)
                self._strike(step)
                asks = step % 10 == 0 and store.try_get("stop") is not None
                stop = self._step(step, asks)
                step += 1
                time.sleep(self._pause)
        self._group.barrier()
        return {"masks": self.masks, "seconds": self.seconds, "members": self.members, "first": first,
                "generation": self._group.committed_generation}  # fmt: skip

    def _die_in_a_handshake(self, point):
        """Dies when another one has connected to it and waits for an answer."""

        def die(sock, secret, *, initiator, **options):
            if not initiator:
                os.kill(os.getpid(), signal.SIGKILL)
            return secure(sock, secret, initiator=initiator, **options)

        if any(fault.get("point") == point for fault in self._faults):
            doorman.secure = die

    def _die_when_somebody_joins(self):
        connect = self._membership._connect

        def connect_or_die(store, decision, *arguments):
            if decision.joined:
                os.kill(os.getpid(), signal.SIGKILL)
            connect(store, decision, *arguments)

        if any(fault.get("point") == "join" for fault in self._faults):
            self._membership._connect = connect_or_die

    def _meet(self, step):
        return int(self._group.broadcast(np.array([step]), root=self._group.chief)[0])

    def _step(self, step, asks):
        self._work[:] = self._factors * 2.0**self._group.rank * (step + 1)
        self._work[-1] = asks
        self._reduce._operation.step = step
        begin = time.monotonic()
        self._reduce()
        self.seconds[step] = time.monotonic() - begin
        masks = self._work[:-1] / (self._factors[:-1] * (step + 1))
        assert (masks == masks[0]).all(), f"step {step}: {masks}"
        self.masks[step] = masks[0]
        self.members[step] = list(self._group.members)
        return self._work[-1] > 0

    def _strike(self, step):
        for fault in self._faults:
            if fault["step"] != step or fault.get("point") in PLACES:
                continue
            number = fault.get("signal", signal.SIGKILL)
            if number == signal.SIGSTOP:
                subprocess.Popen(["sh", "-c", f"sleep {fault['seconds']}; kill -CONT {os.getpid()}"])
            if "drop" in fault:
                peer = self._group.members.index(fault["drop"])
                library.core().tfdist_group_drop(self._group.native, peer)
            elif fault["point"] == BEFORE:
                os.kill(os.getpid(), number)
            else:
                library.core().tfdist_group_set_fault(self._group.native, fault["point"], step, number)


def main(path, arguments):
    result = Worker(**json.loads(arguments)).run()
    with open(path, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
