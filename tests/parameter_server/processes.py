"""Processes that a test has started."""

import contextlib
import os


def children(mark):
    """Returns the processes that this one has started whose command line has `mark`."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{name}/cmdline", "rb") as line, open(f"/proc/{name}/stat") as stat:
                if mark.encode() in line.read() and int(stat.read().rsplit(")", 1)[1].split()[1]) == os.getpid():
                    found.append(int(name))
    return found
