"""`python -m tfdist.parameter_server`: one parameter server, until SIGTERM.

Its place comes from the environment, as `tfdist run --servers` or TF_CONFIG sets it; a strategy that starts servers of
its own gives it as options.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading

from absl import logging

from tfdist.cluster import variables
from tfdist.cluster.host import LOOPBACK
from tfdist.cluster.secret import given_secret
from tfdist.cluster.server import ADDRESS_KEY, SUMMARY_KEY, ServerPlace, resolve_server
from tfdist.cluster.store import StoreClient
from tfdist.errors import TfdistError
from tfdist.parameter_server.keeper import Keeping
from tfdist.parameter_server.server import ParameterServer

_DEFAULT_TIMEOUT_SECONDS = 600.0
_FIND_SECONDS = 3.0
_LOOK_SECONDS, _ALONE_LOOKS = 0.5, 3


def main(arguments=None):
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tfdist.parameter_server", description=__doc__.splitlines()[0])
    parser.add_argument("--index", type=int, default=0, help="this server's number, with --report-to (0)")
    parser.add_argument("--num-workers", type=int, default=1, help="how many there are, with --report-to (1)")
    parser.add_argument("--bind", metavar="HOST", default=LOOPBACK, help="where to listen, with --report-to")
    told = "a file descriptor that is told the address; the server then ends when its standard input does"
    parser.add_argument("--report-to", type=int, metavar="FD", help=told)
    parser.add_argument("--snapshots", metavar="FOLDER", help="keep the state there, with --report-to")
    parser.add_argument("--listen-on", type=int, metavar="FD", help="a socket that listens, instead of --bind")
    parser.add_argument("--peers", metavar="HOST:PORT,...", help="where all servers listen, with --snapshots")
    parser.add_argument("--incarnation", type=int, default=0, help="how often there was one before (0)")
    chosen = parser.parse_args(arguments)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if chosen.report_to is not None:
        _leave_the_workers_core()
    try:
        place = resolve_server(os.environ) if chosen.report_to is None else _place(chosen)
        listens = {"host": place.bind_host, "port": place.port}
        timeout = place.timeout or _DEFAULT_TIMEOUT_SECONDS
        keeping = _keeping(chosen, place)
        if chosen.listen_on is not None:
            listens["listener"] = socket.socket(fileno=chosen.listen_on)
        with ParameterServer(place.world_size, place.secret, **listens, timeout=timeout, keeping=keeping) as server:
            _publish(place, server.address, chosen.report_to)
            if chosen.report_to is not None:
                threading.Thread(target=_watch, args=(stopped, server if keeping else None), daemon=True).start()
            stopped.wait()
            _summarize(place, server)
        if chosen.snapshots:
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(chosen.snapshots))  # others may still have theirs there
    except TfdistError as error:
        print(f"tfdist parameter server: {error}", file=sys.stderr)
        return 1
    return 0


def _place(chosen):
    return ServerPlace(
        index=chosen.index,
        num_servers=chosen.index + 1,
        world_size=chosen.num_workers,
        store_address=os.environ.get("TFDIST_STORE", ""),
        bind_host=chosen.bind,
        secret=given_secret(os.environ) or b"",
        source="a strategy",
        timeout=variables.timeout(os.environ),
    )


def _keeping(chosen, place):
    """How this server outlives its process, or None."""
    if chosen.snapshots:
        peers = chosen.peers.split(",")
        find = peers.__getitem__ if len(peers) > 1 else None
        return Keeping(chosen.snapshots, find=find, incarnation=chosen.incarnation)
    if chosen.report_to is not None or not variables.recover(os.environ, default=False):
        return None

    def find(index):
        with StoreClient(place.store_address, place.secret, timeout=_FIND_SECONDS) as store:
            return store.get(f"{ADDRESS_KEY}{index}").decode()

    folder = variables.snapshots(os.environ) or tempfile.gettempdir()
    job = hashlib.sha256(place.secret + place.store_address.encode()).hexdigest()[:16]
    path = os.path.join(folder, f"tfdist-{os.getuid()}-{job}-server-{place.index}")
    find = find if place.store_address else None
    return Keeping(path, find=find, incarnation=variables.incarnation(os.environ))


def _leave_the_workers_core():
    """`tfdist run` gives each worker cores of its own; the server that one of them starts is nobody's burden alone."""
    if hasattr(os, "sched_setaffinity") and os.environ.get("TFDIST_LOCAL_WORLD_SIZE", ""):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _publish(place, address, descriptor):
    if descriptor is not None:
        with os.fdopen(descriptor, "w", encoding="ascii") as pipe:
            pipe.write(f"{address}\n")
    elif place.store_address:
        with StoreClient(place.store_address, place.secret) as store:
            store.set(f"{ADDRESS_KEY}{place.index}", address.encode())


def _watch(stopped, server):
    """The starter's end of the pipe closes when it ends, however it ends; other workers may go on without it."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    alone = 0
    while server and alone < _ALONE_LOOKS and not stopped.wait(_LOOK_SECONDS):
        alone = 0 if server.num_connections() else alone + 1
    stopped.set()


def _summarize(place, server):
    """Leaves in the store what `tfdist run --summary` shows."""
    if not place.store_address:
        return
    try:
        with StoreClient(place.store_address, place.secret, timeout=1.0) as store:
            store.set(f"{SUMMARY_KEY}{place.index}", json.dumps({"server": place.index, **server.summary()}).encode())
    except TfdistError as error:
        logging.debug("parameter server %d: no summary: %s", place.index, error)


if __name__ == "__main__":
    sys.exit(main())
