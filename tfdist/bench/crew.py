"""A crew: the long-lived ranks of one peer. They sleep on a socket until they are asked for something."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tfdist.errors import TfdistError
from tfdist.launch import child

_START_SECONDS = 120.0
_REPLY_SECONDS = 300.0
_END_SECONDS = 5.0
_LAST_LINES = 3
_SHARED_MEMORY = "/dev/shm"


class CrewFailedError(TfdistError):
    """A peer cannot be measured: its ranks did not start, ended, disagree, or computed a wrong sum."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """A process that becomes one rank, or (`mpiexec`) all of them.

    Args:
      command: tuple of str, the program with its full path, and its arguments.
      environment: dict, all of its variables.
      is_server: bool; it reports nothing, and is told to end (SIGTERM) when the ranks have ended.
    """

    command: tuple[str, ...]
    environment: dict
    is_server: bool = False


class Crew:
    """Starts the ranks of a peer and talks to all of them at once.

    Args:
      name: of the peer.
      launches: list of `Launch`.
      world_size: int, the ranks that will report.
      task: dict that the ranks read from TFDIST_BENCH; `cores` (a list of lists, by rank) is one of its keys.

    Raises:
      CrewFailedError: not all ranks reported within 120 s, or one ended.
    """

    def __init__(self, name, launches, world_size, task):
        self.name, self.world_size = name, world_size
        self._processes, self._servers, self._lines = [], [], {}
        self.pids = {}
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            parent = _SHARED_MEMORY if os.path.isdir(_SHARED_MEMORY) else None
            self._log = stack.enter_context(tempfile.TemporaryFile())
            # Everybody has opened what is in the folder when all have met, so even a coordinator that is killed leaves none.
            with tempfile.TemporaryDirectory(prefix="tfdist-bench-", dir=parent) as folder:
                Path(folder, "barrier").write_bytes(bytes(64 * world_size))
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(Path(folder) / "socket"))
                    listener.listen(world_size)
                    text = json.dumps({**task, "folder": folder})
                    for launch in launches:
                        started = self._servers if launch.is_server else self._processes
                        started.append(self._start(launch, text))
                    self._meet(listener, stack)
            self._closing = stack.pop_all()

    def ask(self, do, **arguments):
        """Sends a message to every rank and waits for all of the answers.

        Args:
          do: the method that every rank calls, with `arguments`.

        Returns:
          List of the ranks' dicts, in the order of ranks.

        Raises:
          CrewFailedError: a rank ended, failed, was silent for 300 s, or found a wrong sum.
        """
        text = json.dumps({"do": do, **arguments}) + "\n"
        try:
            for lines in self._lines.values():
                lines.write(text)
                lines.flush()
            replies = [json.loads(self._lines[rank].readline() or "null") for rank in range(self.world_size)]
        except OSError as error:
            raise self._failure(f"{do} was not answered: {error or type(error).__name__}") from error
        for rank, reply in enumerate(replies):
            if reply is None:
                raise self._failure(f"rank {rank} ended during {do}")
            if "wrong" in reply:
                raise CrewFailedError(f"{self.name}, rank {rank} of {self.world_size}: {reply['wrong']}")
        failed = [f"rank {rank}: {reply['error']}" for rank, reply in enumerate(replies) if "error" in reply]
        if failed:
            raise self._failure(f"{do} failed on {failed[0]}")
        return replies

    def cpu_seconds(self):
        """Returns the processor time that all ranks have used so far; 0.0 where the system does not tell."""
        total = 0
        for pid in self.pids.values():
            with contextlib.suppress(OSError, ValueError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")

    def close(self):
        """Ends the ranks."""
        self._closing.close()

    def _start(self, launch, text):
        shim = (sys.executable, "-I", "-S", child.__file__, str(os.getpid()), "")
        return subprocess.Popen(
            [*shim, *launch.command],
            env={**launch.environment, "TFDIST_BENCH": text},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def _meet(self, listener, stack):
        deadline = time.monotonic() + _START_SECONDS
        listener.settimeout(0.1)
        while len(self._lines) < self.world_size:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                everybody = (*self._processes, *self._servers)
                ended = [process.returncode for process in everybody if process.poll() is not None]
                late = time.monotonic() > deadline
                if ended or late:
                    what = f"ended with exit code {ended[0]}" if ended else f"did not start within {_START_SECONDS:g} s"
                    raise self._failure(f"a rank {what}") from None
                continue
            connection.settimeout(_REPLY_SECONDS)
            lines = connection.makefile("rw", encoding="utf-8")
            stack.callback(_hang_up, connection, lines)
            hello = json.loads(lines.readline())
            self._lines[hello["rank"]], self.pids[hello["rank"]] = lines, hello["pid"]

    def _failure(self, what):
        self._log.flush()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
        return CrewFailedError(f"{self.name}: {what}. Its last lines: {' | '.join(text) or 'none'}")

    def _end(self):
        """Gives the processes a moment to end by themselves (their socket is closed), then kills them."""
        self._end_all(self._processes)
        for process in self._servers:
            process.terminate()
        self._end_all(self._servers)

    def _end_all(self, processes):
        deadline = time.monotonic() + _END_SECONDS
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            if process.poll() is None:
                for kill, target in ((os.killpg, process.pid), *((os.kill, pid) for pid in self.pids.values())):
                    with contextlib.suppress(ProcessLookupError):
                        kill(target, signal.SIGKILL)
                process.wait(_END_SECONDS)


def _hang_up(connection, lines):
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):  # what could not be sent
        lines.close()
    connection.close()
