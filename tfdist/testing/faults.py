"""Where faults happen: the library calls `reach` at each phase, which costs one comparison where none is scheduled.

This module imports no TensorFlow. Thread safe.
"""

import os
import select
import signal
import subprocess
import sys
import threading

from absl import logging

from tfdist.cluster import variables
from tfdist.testing import fault as fault_module

_HELPER_SECONDS = 10.0
# Runs beside a process that has stopped itself. It outlives what is sent to the group, but not the process.
_CONTINUE = """
import os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
pid, end = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
os.write(1, b"x")
while time.monotonic() < end and os.getppid() == pid:
    time.sleep(max(0.0, min(0.05, end - time.monotonic())))
if os.getppid() == pid:
    os.kill(pid, signal.SIGCONT)
"""

_schedule = None  # None: nothing happens to this process
_drop_hook = None


def reach(phase, step=None):
    """Makes happen what is scheduled for this moment; may not return, or return seconds later.

    Args:
      phase: str, one of `tfdist.testing.PHASES`.
      step: int, the training step, from 0; None where the phase belongs to none.
    """
    if _schedule is not None:
        for fault in _schedule.take(phase, step):
            perform(fault)


def are_scheduled():
    """Returns whether anything is scheduled for this process."""
    return _schedule is not None


def take(phase, step=None):
    """Returns the list of `Fault`s that are due now, for those who make them happen by themselves. Each is due once."""
    return _schedule.take(phase, step) if _schedule is not None else []


def perform(fault):
    """Makes a fault happen to this process."""
    logging.warning("tfdist.testing: %s", fault)
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.kind == "stop":
        _stop(fault.seconds)
    elif _drop_hook is not None:
        _drop_hook(fault.peer)
    else:
        logging.warning("tfdist.testing: there is no connection to rank %d that could be dropped", fault.peer)


def on_drop(hook):
    """Registers what closes the connections to a peer, called with its rank; None: nothing does."""
    global _drop_hook
    _drop_hook = hook


def load(environ=os.environ):
    """Reads TFDIST_FAULTS anew, as at the first import: all that concerns this process is due once more.

    Raises:
      ConfigurationError: it cannot be read.
    """
    global _schedule
    found = [] if environ.get("TFDIST_SERVER", "") else fault_module.from_environment(environ)
    _schedule = _Schedule(found, environ) if found else None


class _Schedule:
    """What is still to happen to this process."""

    def __init__(self, faults, environ):
        self._lock = threading.Lock()  # guards all of it
        self._faults = [fault for fault in faults if fault.incarnation == variables.incarnation(environ)]
        self._rank = variables.integer(environ, "TFDIST_RANK")
        self._counts = dict.fromkeys(fault_module.PHASES, 0)

    def take(self, phase, step):
        with self._lock:
            at = self._counts[phase] if step is None else step
            self._counts[phase] += 1
            due = [fault for fault in self._faults if fault.phase == phase and (fault.step is None or at >= fault.step)]
            due = [fault for fault in due if fault.rank == self._own_rank()]
            self._faults = [fault for fault in self._faults if fault not in due]
            return due

    def _own_rank(self):
        if self._rank is None:  # started by a scheduler, whose variables take some looking
            from tfdist.cluster import rank

            self._rank = rank()
        return self._rank


def _stop(seconds):
    helper = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CONTINUE, str(os.getpid()), str(seconds)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    with helper:
        is_ready, _, _ = select.select([helper.stdout], [], [], _HELPER_SECONDS)
        if not is_ready or not helper.stdout.read(1):
            helper.kill()
            logging.warning("tfdist.testing: the process that ends the stop did not start; nothing is stopped")
            return
        os.kill(os.getpid(), signal.SIGSTOP)
        helper.wait(_HELPER_SECONDS)


load()
