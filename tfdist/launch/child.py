"""Runs between fork and the worker's interpreter: ties the worker's life to the launcher's, pins it, becomes it.

    python -I -S child.py LAUNCHER_PID CORES PROGRAM ARGUMENT...

A program of its own because code run between fork and exec of a process with threads may deadlock. It imports the standard
library only and starts in some 20 ms.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main():
    launcher, cores, program = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        # Kept over execve: when the launcher dies, however it dies, the kernel kills this process.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if cores:
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    if os.getppid() != launcher:
        return  # it died before prctl
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
