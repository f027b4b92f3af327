"""Jobs of small workers (`worker.py`) that are lost and come again; the job stands in for the launcher."""

import dataclasses
import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

from tfdist.cluster.store import StoreServer

ROOT = Path(__file__).resolve().parents[2]
EXIT_AGAIN = 75
_LOOK_SECONDS = 0.005


@dataclasses.dataclass
class Process:
    """One of the processes that have had a rank one after the other."""

    rank: int
    incarnation: int
    popen: subprocess.Popen
    folder: Path

    @property
    def name(self):
        return f"{self.rank}-{self.incarnation}"

    @property
    def result(self):
        """What the worker has told in the end, or None."""
        path = self.folder / f"{self.name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def output(self):
        return (self.folder / f"{self.name}.output").read_text(errors="replace")


class Job:
    """Args:
    num_workers: int.
    folder: Path of an empty folder.
    restarts: whether lost workers are started again.
    environment: dict of further variables.
    **arguments: of `worker.Worker`.
    """

    def __init__(self, num_workers, folder, *, restarts=False, environment=(), **arguments):
        self._folder, self._restarts, self._arguments = folder, restarts, arguments
        self._secret = secrets.token_hex(16)
        self.store = StoreServer("127.0.0.1", 0, secret=self._secret.encode())
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TFDIST_")},
            **dict(
                PYTHONPATH=str(ROOT), TFDIST_STORE=self.store.address, TFDIST_SECRET=self._secret, TFDIST_RECOVER="1"
            ),
            **dict(TFDIST_WORLD_SIZE=str(num_workers), TFDIST_LOCAL_WORLD_SIZE=str(num_workers), OMP_NUM_THREADS="1"),
            **dict(TFDIST_PLAN="default", TFDIST_TIMEOUT="60", TFDIST_HEARTBEAT_SECONDS="2"),
            **dict(environment),
        }
        self.running, self.ended = {}, []
        for rank in range(num_workers):
            self.start(rank, 0)

    def start(self, rank, incarnation):
        process = Process(rank, incarnation, None, self._folder)
        variables = dict(TFDIST_RANK=str(rank), TFDIST_LOCAL_RANK=str(rank), TFDIST_INCARNATION=str(incarnation))
        command = [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name("worker.py"))]
        with open(self._folder / f"{process.name}.output", "wb") as output:
            process.popen = subprocess.Popen(
                [*command, str(self._folder / f"{process.name}.json"), json.dumps(self._arguments)],
                env={**self._environment, **variables}, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.running[rank] = process

    def kill(self, rank, number):
        """Sends a signal to the process that has a rank; returns whether there is one."""
        if rank in self.running:
            self.running[rank].popen.send_signal(number)
        return rank in self.running

    def await_key(self, prefix, timeout=30.0):
        """Waits until the store has a key that begins so; returns all of them."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = self.store.items(prefix)
            if found:
                return found
            self.look()
        raise AssertionError(f"no {prefix} in the store. {self.story()}")

    def look(self):
        """Notes who has ended, as the launcher does."""
        for rank, process in list(self.running.items()):
            code = process.popen.poll()
            if code is None:
                continue
            del self.running[rank]
            self.ended.append(process)
            if code < 0 or code == EXIT_AGAIN:
                self.store.set(f"elastic/dead/{rank}", str(process.incarnation).encode())
                if self._restarts and not self.store.items("elastic/over"):
                    self.start(rank, process.incarnation + 1)
        time.sleep(_LOOK_SECONDS)

    def await_end(self, timeout=60.0):
        """Waits until all have ended; returns the list of the `Process`es that have ended with 0."""
        deadline = time.monotonic() + timeout
        while self.running:
            if time.monotonic() > deadline:
                for process in self.running.values():
                    process.popen.send_signal(6)  # faulthandler prints the stacks
                    process.popen.wait()
                raise AssertionError(f"rank {list(self.running)} did not end. {self.story()}")
            self.look()
        return [process for process in self.ended if process.popen.returncode == 0]

    def story(self):
        """Returns the end of everybody's output."""
        processes = [*self.ended, *self.running.values()]
        return "\n".join(f"--- {p.name} exit {p.popen.poll()}\n{p.output[-3000:]}" for p in processes)

    def close(self):
        for process in self.running.values():
            process.popen.kill()
            process.popen.wait()
        self.store.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
