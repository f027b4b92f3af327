"""One worker or server process, from its start to the end of all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

from tfdist.launch.output import Pump

_CHILD = os.path.join(os.path.dirname(__file__), "child.py")


class Worker:
    """A running worker, or a parameter server. It leads a process group, so that its own children can be reached too.

    Start it from a thread that lives as long as the job: the kernel ends the worker with that thread.

    Args:
      rank: int; a server's index.
      command: list of str, the interpreter's arguments.
      environment: dict, all of its variables.
      cores: list of int to run on; empty for all.
      output: an `Output`.
      prefix: str in front of its lines.
      on_exit: called with this worker, from another thread, when it has ended.
      options: further arguments of `subprocess.Popen`.
    """

    def __init__(self, rank, command, environment, *, cores, output, prefix, on_exit, **options):
        self.rank = rank
        self.started = time.time()
        self.ended = None
        self.exit_code = None  # negative: the signal, as in subprocess
        shim = [sys.executable, "-I", "-S", _CHILD, str(os.getpid()), ",".join(map(str, cores))]
        self._process = subprocess.Popen(
            [*shim, sys.executable, "-u", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, **options},
        )
        self.pid = self._process.pid
        self.stdin = self._process.stdin
        self._pumps = {
            name: Pump(getattr(self._process, name), output, name, prefix.encode()) for name in ("stdout", "stderr")
        }
        self._waiter = threading.Thread(target=self._wait, args=(on_exit,), name="tfdist-wait", daemon=True)
        for thread in (*self._pumps.values(), self._waiter):
            thread.start()

    def send(self, number):
        """Sends a signal to the worker and all of its group."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            pass

    def finish(self, timeout=2.0):
        """Kills what is left of the group, and waits until its last line has been copied."""
        if self._process.returncode is not None:
            return  # finished before
        self.send(signal.SIGKILL)
        self._waiter.join(timeout)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        deadline = time.monotonic() + timeout
        for pump in self._pumps.values():
            # A grandchild that left the group may hold the pipe open: it is not waited for longer.
            pump.join(max(0.0, deadline - time.monotonic()))

    def last_errors(self):
        """Returns its last lines on stderr."""
        return self._pumps["stderr"].last_lines()

    def _wait(self, on_exit):
        # The process stays a zombie until finish(): its number, which is the group's, cannot go to another meanwhile.
        if hasattr(os, "waitid"):
            status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            exit_code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        else:
            exit_code = self._process.wait()
        self.ended, self.exit_code = time.time(), exit_code
        on_exit(self)
