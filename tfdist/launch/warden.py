"""Kills the workers' process groups when the launcher is gone without having done so itself.

    python -I -S warden.py < pipe from the launcher

The workers themselves die with the launcher (see child.py); what they had started would not. The launcher writes one line per
worker, "+PID" at its start and "-PID" at its end; the end of the pipe means that the launcher is gone.
"""

import os
import signal
import sys


def main():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups = set()
    for line in sys.stdin:
        (groups.add if line.startswith("+") else groups.discard)(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass


if __name__ == "__main__":
    main()
