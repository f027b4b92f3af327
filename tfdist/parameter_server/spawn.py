"""Servers that the chief's process starts for itself, where nobody else has: they end with it, however it ends.

Each has a session of its own, so that what ends the chief's process group leaves it the time to tell what it has
counted. It reads from a pipe whose other end the chief holds, and ends when that closes. With `recovers` a server that is
killed is started again, and listens on the socket of the one before: its address stays, and whoever connects meanwhile waits.
"""

import atexit
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

from absl import logging

from tfdist.cluster.address import format_address
from tfdist.errors import RendezvousError
from tfdist.parameter_server.listening import listen

_START_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_PAUSES = (0.05, 5.0)
_VAIN_STARTS_AT_MOST = 5


def start(num_servers, *, world_size, secret, host, timeout, environ=os.environ, recovers=False):
    """Starts servers on this host.

    Args:
      num_servers: int >= 1.
      world_size: int, the number of workers.
      secret: bytes, the job's secret.
      host: the address at which they listen.
      timeout: float seconds that a worker waits there for others.
      environ: the variables that they inherit.
      recovers: bool, whether they keep snapshots and are started again when they are killed.

    Returns:
      `(addresses, stop)`: a list of "host:port" and a function that ends the servers; it is also called at exit.

    Raises:
      RendezvousError: one did not start.
    """
    folder = tempfile.mkdtemp(prefix="tfdist-servers-") if recovers else None
    variables = _variables(environ, secret, timeout)
    servers = []

    def stop():
        atexit.unregister(stop)
        _stop(servers)
        if folder:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    try:
        for index in range(num_servers):
            options = ["--index", str(index), "--num-workers", str(world_size), "--bind", host]
            servers.append(_Server(index, options, variables, host, folder))
        for server in servers:
            server.start([one.listening_at for one in servers])
        addresses = [server.await_address() for server in servers]
        for server in servers:
            server.watch()
        return addresses, stop
    except BaseException:
        stop()
        raise


class _Server:
    """One process after the other."""

    def __init__(self, index, options, variables, host, folder):
        self._index = index
        self._options = options
        self._variables = variables
        self._folder = folder
        self._listener = listen(host, 0) if folder else None
        self.listening_at = self._listener and format_address(host, self._listener.getsockname()[1])
        self._peers = []
        self._incarnation = 0
        self._reader = None
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # no process starts while the last one is stopped
        self.process = None
        self._thread = None

    def start(self, peers):
        """Starts the process; `peers`: where all servers listen."""
        self._peers = peers
        with self._lock:
            if not self._stopped.is_set():
                self._start()

    def _start(self):
        self._reader, writer = os.pipe()
        try:
            place, passed = [*self._options, "--report-to", str(writer)], [writer]
            if self._folder:
                place += ["--snapshots", os.path.join(self._folder, str(self._index))]
                place += ["--listen-on", str(self._listener.fileno()), "--peers", ",".join(self._peers)]
                place += ["--incarnation", str(self._incarnation)]
                passed.append(self._listener.fileno())
            command = [sys.executable, "-m", "tfdist.parameter_server", *place]
            pipes = {"stdin": subprocess.PIPE, "pass_fds": passed}
            self.process = subprocess.Popen(command, env=self._variables, start_new_session=True, **pipes)
        except BaseException:
            self._forget_reader()
            raise
        finally:
            os.close(writer)

    def await_address(self):
        """Returns where it listens, when it does."""
        try:
            return _address(self._reader, self._index)
        finally:
            self._forget_reader()

    def _forget_reader(self):
        os.close(self._reader)
        self._reader = None

    def watch(self):
        """Begins to start it again whenever it is killed."""
        if self._folder:
            self._thread = threading.Thread(target=self._watch, name="tfdist-servers", daemon=True)
            self._thread.start()

    def _watch(self):
        pause, vain = _PAUSES[0], 0
        while self.process.wait() < 0 and not self._stopped.is_set() and vain < _VAIN_STARTS_AT_MOST:
            logging.warning("parameter server %d ended by signal %d; it is started again", self._index,
                            -self.process.returncode)  # fmt: skip
            self.process.stdin.close()
            self._incarnation += 1
            self.start(self._peers)
            if self._stopped.is_set():
                return
            try:
                self.await_address()
                pause, vain = _PAUSES[0], 0
            except RendezvousError as error:
                logging.warning("%s", error)
                vain += 1
                self._stopped.wait(pause)
                pause = min(2 * pause, _PAUSES[1])

    def tell_to_stop(self):
        """Asks the process to end."""
        with self._lock:
            self._stopped.set()
            if self.process is None:
                return
            self.process.stdin.close()
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)

    def finish(self, deadline):
        """Waits until it has ended; kills it at the deadline."""
        if self.process is not None:
            try:
                self.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self._thread is not None:
            self._thread.join(_GRACE_SECONDS)
        if self._reader is not None:
            self._forget_reader()
        if self._listener is not None:
            self._listener.close()


def _variables(environ, secret, timeout):
    variables = {
        **environ,
        "TFDIST_SECRET": os.fsdecode(secret),
        "TFDIST_TIMEOUT": f"{timeout:g}",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
    }
    variables.pop("TFDIST_SECRET_FILE", None)
    return variables


def _address(reader, index):
    deadline, text = time.monotonic() + _START_SECONDS, b""
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while not text.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise RendezvousError(
                    f"Parameter server {index} was expected to listen within {_START_SECONDS:g} s. "
                    "Received: nothing. See its output."
                )
            part = os.read(reader, 256)
            if not part:
                raise RendezvousError(
                    f"Parameter server {index} was expected to start. Received: it ended at once. "
                    "See its output for why."
                )
            text += part
    return text.decode().strip()


def _stop(servers):
    for server in servers:
        server.tell_to_stop()
    deadline = time.monotonic() + _GRACE_SECONDS
    for server in servers:
        server.finish(deadline)
