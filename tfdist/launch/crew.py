"""The places of a job on this host, and the processes that fill them one after the other."""

import contextlib
import dataclasses
import os
import subprocess
import sys

from tfdist.launch.failure import Failure
from tfdist.launch.resources import available_cores, divide_cores
from tfdist.launch.restarts import Record
from tfdist.launch.worker import Worker

_BURIAL_SECONDS = 0.5  # others may be lost meanwhile
_WARDEN = os.path.join(os.path.dirname(__file__), "warden.py")


@dataclasses.dataclass(eq=False)
class Slot:
    """A place: a rank, or a server's index, that outlives its process.

    Args:
      rank: int; a server's index.
      local_rank: int, its number on this host.
      is_server: bool.
      incarnation: int, how many processes it had before the present one; -1 before the first.
      process: the `Worker`, also after its end; None before the first.
      is_running: bool, whether the supervisor has not seen it end.
      restart_at: float, `time.monotonic()` when its next process starts, or None.
      is_given_up: bool, whether its process was lost for good.
      loss: the `Failure` that was its last loss, or None.
      is_dismissed: bool, whether the job has ended without its process.
      record: what restarts.py remembers.
    """

    rank: int
    local_rank: int
    is_server: bool = False
    incarnation: int = -1
    process: Worker | None = None
    is_running: bool = False
    restart_at: float | None = None
    is_given_up: bool = False
    loss: Failure | None = None
    is_dismissed: bool = False
    record: Record = dataclasses.field(default_factory=Record)

    @property
    def is_wanted(self):
        """Whether the job waits for it."""
        return self.restart_at is not None or self.is_running and not self.is_dismissed

    @property
    def is_lost(self):
        """Whether its last process was lost, and no other has taken its place yet."""
        return self.is_given_up or self.restart_at is not None

    @property
    def is_free(self):
        """Whether a worker may be added here."""
        return self.restart_at is None and (self.process is None or self.is_given_up)


class Crew:
    """Starts the processes of a job on this host; a context manager that leaves none of them behind.

    Args:
      job: a `Job`.
      store_address: str, "host:port".
      secret: bytes, the job's.
      environ: the variables that the processes inherit.
      output: an `Output`.
      on_exit: called with each `Worker` that has ended, from another thread.
      calls: the `function.Calls` that the workers are to make, or None.
    """

    def __init__(self, job, *, store_address, secret, environ, output, on_exit, calls=None):
        self._job, self._calls = job, calls
        self._surroundings = (store_address, secret, environ)
        self._output, self._on_exit = output, on_exit
        self.workers = [Slot(job.rank(local), local) for local in range(job.local_world_size)]
        self.servers = [Slot(index, index, is_server=True) for index in range(job.num_local_servers)]
        # Workers that are added later run where there is room: the cores are divided between the first.
        self._cores = divide_cores(available_cores(), job.num_workers)
        self._stack = contextlib.ExitStack()

    def __enter__(self):
        self._warden = self._stack.enter_context(_Warden())
        return self

    def __exit__(self, *exception):
        for slot in (*self.workers, *self.servers):
            if slot.process is not None:
                slot.process.finish()
        return self._stack.__exit__(*exception)

    def start_all(self):
        """Starts the servers and the workers that the job starts with."""
        for slot in (*self.servers, *self.workers[: self._job.num_workers]):
            self.start(slot)

    def add_server(self):
        """Makes a place for one more server; returns it."""
        index = len(self.servers)
        self.servers.append(Slot(index, index, is_server=True))
        return self.servers[-1]

    def start(self, slot):
        """Starts the next process of a place."""
        slot.incarnation += 1
        slot.restart_at, slot.is_given_up = None, False
        make = self._server if slot.is_server else self._worker
        slot.process = make(slot)
        slot.is_running = True
        self._warden.watch(slot.process.pid)

    def bury(self, slot):
        """Ends what a lost process had started, and keeps its last lines."""
        process = slot.process
        self._warden.forget(process.pid)
        process.finish(_BURIAL_SECONDS)
        slot.loss = Failure(
            slot.rank, process.exit_code, process.ended, None, tuple(process.last_errors()), slot.is_server
        )

    def note_end(self, process):
        """Returns the place of a process that has ended."""
        slot = next(slot for slot in (*self.workers, *self.servers) if slot.process is process)
        slot.is_running = False
        return slot

    def _server(self, slot):
        environment = self._job.server_environment(slot.rank, slot.incarnation, *self._surroundings)
        return Worker(slot.rank, self._job.server_command, environment, cores=[], output=self._output,
                      prefix=f"[s{slot.rank}] ", on_exit=self._on_exit)  # fmt: skip

    def _worker(self, slot):
        environment = self._job.environment(slot.local_rank, slot.incarnation, *self._surroundings)
        cores = self._cores[slot.local_rank] if slot.local_rank < len(self._cores) else []
        width = len(str(self._job.world_size - 1))
        options = self._calls.options() if self._calls else {}
        worker = Worker(slot.rank, self._job.command, environment, cores=cores, output=self._output,
                        prefix=f"[{slot.rank:{width}}] ", on_exit=self._on_exit, **options)  # fmt: skip
        if self._calls:
            self._calls.began(worker)
        return worker


class _Warden:
    """The process that warden.py describes: it is told of each process group."""

    def __enter__(self):
        self._groups = set()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", _WARDEN],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        return self

    def __exit__(self, *_):
        for group in sorted(self._groups):
            self._tell("-", group)
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()

    def watch(self, group):
        self._groups.add(group)
        self._tell("+", group)

    def forget(self, group):
        self._groups.discard(group)
        self._tell("-", group)

    def _tell(self, sign, group):
        with contextlib.suppress(OSError):  # somebody killed it; the job goes on
            self._process.stdin.write(f"{sign}{group}\n")
            self._process.stdin.flush()
