"""How ranks on one host learn which free port rank 0 took: a small file in the user's runtime directory."""

import contextlib
import hashlib
import json
import os
import socket
import sys
import time

from tfdist.cluster.files import read_private, runtime_directory, write_private
from tfdist.cluster.host import LOOPBACK
from tfdist.cluster.variables import integer, port, timeout
from tfdist.errors import RendezvousError

_PREFIX = "port-"
_RENDEZVOUS_SECONDS = 120.0
_RECENT_SECONDS = 60.0
_imported = time.time()
_reservations = []  # sockets that hold a port until the process ends


def published_port(environ, job, *, publish):
    """Publishes a free port for a job, or waits for the one that rank 0 publishes.

    The file outlives its writer, for a rank that comes late would wait for it in vain; whoever publishes next removes
    those whose writer is dead. A rank takes a dead writer's word only when it is no older than the job may be.

    Args:
      environ: the variables; TFDIST_PORT, where set, is the port, and TFDIST_TIMEOUT limits the wait.
      job: str, equal on all ranks of the job and on no other.
      publish: bool, True on rank 0.

    Returns:
      The port, an int.

    Raises:
      RendezvousError: rank 0 has not published in time.
    """
    if integer(environ, "TFDIST_PORT") is not None:
        return port(environ, None)
    directory = runtime_directory(environ)
    path = os.path.join(directory, _PREFIX + hashlib.sha256(job.encode()).hexdigest()[:16])
    if publish:
        _remove_dead(directory)
        number = _reserve()
        write_private(
            path, json.dumps([number, os.getpid(), _started(os.getpid()), time.time()]).encode(), replace=True
        )
        return number
    limit = min(timeout(environ) or _RENDEZVOUS_SECONDS, _RENDEZVOUS_SECONDS)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        number = _live_port(path)
        if number is not None:
            return number
        time.sleep(0.05)
    raise RendezvousError(
        f"Rank 0 was expected to publish the store's port in {path}. Received: nothing within timeout={limit:g} s. "
        "See whether rank 0 has started on this host and imports tfdist."
    )


def _reserve():
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind((LOOPBACK, 0))
    number = reservation.getsockname()[1]
    if sys.platform == "linux":
        # Bound and not listening: Linux then lets our store listen on the port, and gives it to nobody else by chance.
        _reservations.append(reservation)
    else:
        reservation.close()
    return number


def _live_port(path):
    content = read_private(path)
    try:
        number, writer, started, written = json.loads(content or b"null")
    except (TypeError, ValueError):
        return None
    return number if _is_alive(writer, started) or written > _imported - _RECENT_SECONDS else None


def _is_alive(pid, started):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return _started(pid) == started  # else the number belongs to a new process


def _started(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _remove_dead(directory):
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if name.startswith(_PREFIX) and _live_port(path) is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
