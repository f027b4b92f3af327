"""Finds out which worker's or server's failure is the cause of the others', and words it for the user."""

import dataclasses
import re
import signal

from tfdist.launch.report import CONSEQUENCES, lost_rank_in

_TRACEBACK = re.compile(r"^[\s|+]*(Exception Group )?Traceback \(most recent call last\):")
_LINKS = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)
_NUM_LAST_LINES = 12


@dataclasses.dataclass(frozen=True)
class Failure:
    """A worker that failed, or a server that ended while there were workers.

    Args:
      rank: int; a server's index.
      exit_code: int; negative for a signal; 1 where it reported an exception and had not ended yet; 0 of a server only.
      time: float, seconds since the epoch.
      report: what it reported itself (see report.py), or None.
      last_errors: list of str, its last lines on stderr.
      is_server: bool.
    """

    rank: int
    exit_code: int
    time: float
    report: dict | None = None
    last_errors: tuple = ()
    is_server: bool = False

    @property
    def is_consequence(self):
        """Whether it failed because another worker did."""
        if self.exit_code < 0:
            return False
        if self.report is not None:
            return self.report["lost_rank"] is not None or self.report["type"] in CONSEQUENCES
        return self.lost_rank is not None or any(f"{name}:" in self._last_line for name in CONSEQUENCES)

    @property
    def lost_rank(self):
        """The rank it blames, or None."""
        return self.report["lost_rank"] if self.report is not None else lost_rank_in(self._last_line)

    @property
    def _last_line(self):
        return next((line for line in reversed(self.last_errors) if line.strip()), "")


def find_culprit(failures):
    """Returns the failure that came first of those that are no consequence of another; see the table in its test."""
    failures = sorted(failures, key=lambda failure: failure.time)
    causes = [failure for failure in failures if not failure.is_consequence]
    if causes:
        return causes[0]
    blamed = {failure.lost_rank for failure in failures}
    return next((failure for failure in failures if failure.rank in blamed and not failure.is_server), failures[0])


def exit_code(failure):
    """Returns the launcher's own exit code: the culprit's, 128 + the signal's number, or 1 for a server that ended well."""
    if failure.exit_code == 0:
        return 1
    return failure.exit_code if failure.exit_code >= 0 else 128 - failure.exit_code


def describe(failure, world_size, seconds, note=""):
    """Returns the text, several lines, that ends the job's output; `note`: a sentence to add to the first."""
    if failure.is_server and failure.exit_code == 0:
        what = "returned"
    else:
        what = manner(failure.exit_code)
    who = (
        f"server {failure.rank} ended before the workers: it"
        if failure.is_server
        else f"rank {failure.rank} of {world_size}"
    )
    head = f"tfdist run: {who} {what} after {seconds:.1f} s."
    if failure.is_consequence and failure.lost_rank is not None:
        head += f" It lost rank {failure.lost_rank}: see that rank's output."
    head += f" {note}" if note else ""
    kind, lines = _essence(failure)
    if not lines:
        return f"{head} It wrote nothing to stderr."
    return "\n".join([f"{head} Its {kind}:", *lines])


def manner(exit_code):
    """Returns how a process ended, in words; a negative exit code is a signal's number."""
    if exit_code >= 0:
        return f"failed with exit code {exit_code}"
    hint = " (out of memory? See the kernel's log)" if exit_code == -signal.SIGKILL else ""
    return f"was killed by {_signal_name(-exit_code)}{hint}"


def _essence(failure):
    """Returns what to call the lines, and the lines: its last traceback with the chain of causes, or its last lines."""
    lines = list(failure.last_errors)
    while lines and not lines[-1].strip():
        lines.pop()
    starts = [index for index, line in enumerate(lines) if _TRACEBACK.match(line)]
    if starts and failure.exit_code >= 0:
        begin = starts.pop()
        while starts and any(line in _LINKS for line in lines[starts[-1] : begin]):
            begin = starts.pop()
        return "traceback", lines[begin:]
    if not lines and failure.report is not None:
        return "report", [f"{failure.report['type']}: {failure.report['message']}"]
    return "last lines on stderr", lines[-_NUM_LAST_LINES:]


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
