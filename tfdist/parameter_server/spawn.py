"""Servers that the chief's process starts for itself, where nobody else has: they end with it, however it ends."""

import atexit
import os
import selectors
import signal
import subprocess
import sys
import time

from tfdist.errors import RendezvousError

_CHILD = os.path.join(os.path.dirname(os.path.dirname(__file__)), "launch", "child.py")
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
    for index in range(num_servers):
        reader, writer = os.pipe()
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
        shim = [sys.executable, "-I", "-S", _CHILD, str(os.getpid()), ""]  # it dies with this thread, even by SIGKILL
        processes.append(
            subprocess.Popen([*shim, *command], env=variables, stdin=subprocess.DEVNULL, pass_fds=(writer,))
        )
        os.close(writer)
        readers.append(reader)

    def stop():
        atexit.unregister(stop)
        _stop(processes)

    atexit.register(stop)
    try:
        return [_address(reader, index) for index, reader in enumerate(readers)], stop
    except BaseException:
        stop()
        raise


def _address(reader, index):
    deadline, text = time.monotonic() + _START_SECONDS, b""
    with os.fdopen(reader, "rb", buffering=0) as pipe, selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not text.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise RendezvousError(
                    f"Parameter server {index} was expected to listen within {_START_SECONDS:g} s. Received: nothing. See its output."
                )
            part = pipe.read(256)
            if not part:
                raise RendezvousError(
                    f"Parameter server {index} was expected to start. Received: it ended at once. See its output for why."
                )
            text += part
    return text.decode().strip()


def _stop(processes):
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
