"""A schedule of faults, written as one expression."""

import os

from tfdist.testing import faults
from tfdist.testing.fault import Fault, parse, to_json


class FaultInjector:
    """Schedules what happens to the workers of a job that is started with it.

    Each fault happens once, in the first process that has the rank (`incarnation=1`: in the one that was started in its
    place, and so on). `step` counts the training steps of the job from 0; the fault comes at the first that is not
    before it. In a phase that belongs to no step it counts how often the process has been there before.

    Phases: `variables` (a model's variables are created), `begin` (of training), `step` (before a training step),
    `reducing` (in the middle of its collective), `step_end`, `epoch_end`, `validation`, `saving`, `end` (of training).

    Example:

    ```python
    from tfdist.testing import FaultInjector
    injector = FaultInjector().kill(rank=1, step=3).stop(rank=2, step=5, seconds=3).drop(rank=0, peer=1, step=7)
    injector.apply()  # for what this process starts: subprocess.run(["tfdist", "run", "-n", "3", "train.py"])
    ```

    or `tfdist run -n 3 --inject "kill:rank=1,step=3;stop:rank=2,step=5,seconds=3" train.py`.
    """

    def __init__(self, scheduled=()):
        self.faults = list(scheduled)

    @classmethod
    def parse(cls, text):
        """Returns the FaultInjector of what `tfdist run --inject` is given."""
        return cls(parse(text))

    def kill(self, *, rank, step=None, phase="step", incarnation=0):
        """The worker is gone, as by `kill -9`. Returns this FaultInjector."""
        return self._add(Fault("kill", rank, step, phase, incarnation))

    def stop(self, *, rank, seconds, step=None, phase="step", incarnation=0):
        """The whole process stands still for so many seconds, as by SIGSTOP and SIGCONT. Returns this FaultInjector."""
        return self._add(Fault("stop", rank, step, phase, incarnation, seconds=seconds))

    def drop(self, *, rank, peer, step=None, incarnation=0):
        """The connections between the worker and a peer are closed, and both go on. Returns this FaultInjector."""
        return self._add(Fault("drop", rank, step, incarnation=incarnation, peer=peer))

    def environment(self):
        """Returns the dict of environment variables that brings the faults to the workers."""
        return {"TFDIST_FAULTS": to_json(self.faults)}

    def apply(self, environ=os.environ):
        """Sets them, for this process, where it is a worker, and for those that it starts."""
        environ.update(self.environment())
        if environ is os.environ:
            faults.load(environ)

    def _add(self, fault):
        self.faults.append(fault)
        return self
