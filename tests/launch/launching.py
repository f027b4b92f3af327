"""Starts `tfdist ...` as a process of its own."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

# For scripts, what the library does: `lost` waits for the notice of a loss, `join` and `over` tell the launcher.
PLAY = """
from tfdist.cluster.store import StoreClient

incarnation = int(os.environ["TFDIST_INCARNATION"])
store = StoreClient(os.environ["TFDIST_STORE"], os.environ["TFDIST_SECRET"].encode(), timeout=20.0)

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)

def meet(name, ranks):
    store.set(f"{name}/{rank}", b"")
    for other in ranks:
        store.get(f"{name}/{other}")

def lost(other):
    return int(store.get(f"elastic/dead/{other}"))

def join():
    store.set(f"elastic/joined/{rank}", str(incarnation).encode())

def over():
    store.set("elastic/over", b"")

print(f"{rank} started {incarnation} pid={os.getpid()}", flush=True)
"""

ROOT = str(pathlib.Path(__file__).resolve().parents[2])


def _environment(**variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TFDIST_", "OMP_", "TF_"))}
    return {**kept, "PYTHONPATH": os.pathsep.join([ROOT, *filter(None, sys.path)]), **variables}


# `tfdist run` with a script of the test in the place of the parameter server.
_WITH_SERVER = """
import dataclasses, sys
from tfdist.launch import local, run
job = dataclasses.replace(run.parse(sys.argv[3:]), server_command=(sys.argv[1],))
sys.exit(local.start(job))
"""


def _command(*arguments, server=None):
    if server is not None:
        return [sys.executable, "-c", _WITH_SERVER, str(server), *map(str, arguments)]
    return [sys.executable, "-m", "tfdist", *map(str, arguments)]


def tfdist(*arguments, cwd=None, server=None, **variables):
    """Runs `tfdist ...` to its end; `server`: a script in the place of the parameter server."""
    return subprocess.run(
        _command(*arguments, server=server), env=_environment(**variables), cwd=cwd, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip


@contextlib.contextmanager
def running(*arguments, lines=0, server=None, **variables):
    """Starts `tfdist ...`, waits for so many lines on its stdout and yields the process; its session dies with it."""
    process = subprocess.Popen(
        _command(*arguments, server=server),
        env=_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        process.first_lines = [process.stdout.readline() for _ in range(lines)]
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def free_address():
    """Returns "127.0.0.1:port" of a port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def is_running(pid):
    """Returns whether a process runs, a zombie not counting."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_gone(pids, seconds=5.0):
    """Fails where one of the processes still runs after so many seconds."""
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [pid for pid in pids if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def pids_in(lines):
    """Returns the numbers that scripts have written as `pid=N`."""
    return [int(number) for line in lines for number in re.findall(r"pid=(\d+)", line)]


def lines_with(run, word):
    """Returns the sorted lines of a run's stdout that have a word."""
    return sorted(line for line in run.stdout.splitlines() if word in line)


def said_by(run):
    """Returns the lines of the launcher itself."""
    return [line for line in run.stderr.splitlines() if line.startswith("tfdist run: ")]
