"""Servers that the chief's process starts for itself, where nobody else has: they end with it, however it ends.

Each has a session of its own, so that what ends the chief's process group leaves it the time to tell what it has
counted. It reads from a pipe whose other end the chief holds, and ends when that closes.
"""

import atexit
import os
import selectors
import signal
import subprocess
import sys
import time

from tfdist.errors import RendezvousError

_START_SECONDS = 60.0
_GRACE_SECONDS = 5.0


def start(num_servers, *, world_size, secret, host, timeout, environ=os.environ):
    """Starts servers on this host.

    Args:
      num_servers: int >= 1.
      world_size: int, the number of workers.
      secret: bytes, the job's secret.
      host: the address at which they listen.
      timeout: float seconds that a worker waits there for others.
      environ: the variables that they inherit.

    Returns:
      `(addresses, stop)`: a list of "host:port" and a function that ends the servers; it is also called at exit.

    Raises:
      RendezvousError: one did not start.
    """
    processes, readers = [], []

    def stop():
        atexit.unregister(stop)
        _stop(processes)

    atexit.register(stop)
    try:
        for index in range(num_servers):
            process, reader = _start(index, world_size, secret, host, timeout, environ)
            processes.append(process)
            readers.append(reader)
        return [_address(reader, index) for index, reader in enumerate(readers)], stop
    except BaseException:
        stop()
        raise
    finally:
        for reader in readers:
            os.close(reader)


def _start(index, world_size, secret, host, timeout, environ):
    reader, writer = os.pipe()
    try:
        variables = {
            **environ,
            "TFDIST_SECRET": os.fsdecode(secret),
            "TFDIST_TIMEOUT": f"{timeout:g}",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path),
        }
        variables.pop("TFDIST_SECRET_FILE", None)
        place = ["--index", str(index), "--num-workers", str(world_size), "--bind", host, "--report-to", str(writer)]
        command = [sys.executable, "-m", "tfdist.parameter_server", *place]
        pipes = {"stdin": subprocess.PIPE, "pass_fds": (writer,)}
        return subprocess.Popen(command, env=variables, start_new_session=True, **pipes), reader
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)


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


def _stop(processes):
    for process in processes:
        process.stdin.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
