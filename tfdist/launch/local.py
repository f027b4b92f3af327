"""Starts the workers of this host: serves the store, draws the secret, leaves nothing behind."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys

from tfdist.cluster.address import parse_address
from tfdist.cluster.secret import given_secret
from tfdist.cluster.store import StoreClient, StoreServer
from tfdist.errors import ConfigurationError, TfdistError
from tfdist.launch import function, report
from tfdist.launch.job import Job
from tfdist.launch.output import Output
from tfdist.launch.resources import available_cores, divide_cores
from tfdist.launch.supervisor import Supervisor
from tfdist.launch.worker import Worker

_WARDEN = os.path.join(os.path.dirname(__file__), "warden.py")


class WorkersFailedError(TfdistError):
    """A function did not return on every worker; the text ends with the first failure and its traceback."""


def run(fn, num_workers=2, args=(), *, timeout=None, environ=os.environ):
    """Calls a function on several new processes of this host, as from a notebook, and collects what they return.

    Args:
      fn: a function that a new process can import: from a module, not from a notebook's cell. `tfdist.rank()` and the
        strategies find their place in it as under `tfdist run`.
      num_workers: int >= 1.
      args: tuple of its arguments, the same for all; they and the results are pickled between this process and
        its children, over pipes that no other process has.
      timeout: float seconds that a worker waits for the others; TFDIST_TIMEOUT by default.
      environ: the variables that the workers inherit.

    Returns:
      A list of what fn returned, by rank. Output of the workers is shown with the rank in front.

    Raises:
      ConfigurationError: fn cannot be imported, or num_workers is less than 1.
      WorkersFailedError: it failed on a worker; the others were stopped.
      KeyboardInterrupt: Ctrl-C, after all workers were stopped.

    Example:

    ```python
    from my_module import train        # in a notebook: %%writefile my_module.py
    histories = tfdist.launch.local.run(train, num_workers=2, args=(0.01,))
    ```
    """
    if not isinstance(num_workers, int) or num_workers < 1:
        raise ConfigurationError(
            f"num_workers is expected to be an integer >= 1. Received: num_workers={num_workers!r}. Correct it."
        )
    variables = {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    if timeout is not None:
        variables["TFDIST_TIMEOUT"] = f"{timeout:g}"
    with contextlib.closing(function.Calls(fn, args)) as calls:
        job = Job(function.COMMAND, num_workers, variables=variables)
        exit_code, text = _start(job, environ, sys.stdout, sys.stderr, calls)
        if exit_code == 128 + signal.SIGINT:
            raise KeyboardInterrupt
        if exit_code:
            raise WorkersFailedError(text or f"The workers were stopped. Received: exit code {exit_code}.")
        return calls.results()


def start(job, *, environ=os.environ):
    """Runs a job on this host to its end, its output on ours.

    Call it from a thread that outlives it (it is this thread's end that ends the workers).

    Args:
      job: a `Job`.
      environ: the variables that the workers inherit.

    Returns:
      The exit code: 0, or that of the worker that failed first (128 + the number of a signal).

    Raises:
      ConfigurationError: a job of several hosts has no secret.
      RendezvousError: the store cannot listen at the job's address.
    """
    exit_code, text = _start(job, environ, sys.stdout, sys.stderr)
    if text:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    return exit_code


def _start(job, environ, stdout, stderr, calls=None):
    """Returns the exit code and the text that explains it."""
    secret = _secret_of(job, environ)
    with contextlib.ExitStack() as stack:
        address, read_reports = _open_store(stack, job, secret)
        supervisor = Supervisor(job.world_size, read_reports)
        output = Output(stdout, stderr, supervisor.on_broken_output)
        stack.enter_context(supervisor.signals_forwarded())
        enlist = stack.enter_context(_warden())
        cores = divide_cores(available_cores(), job.num_workers)
        width = len(str(job.world_size - 1))
        workers = []
        try:
            for local_rank in range(job.num_workers):
                worker = Worker(
                    job.rank(local_rank),
                    job.command,
                    job.environment(local_rank, address, secret, environ),
                    cores=cores[local_rank],
                    output=output,
                    prefix=f"[{job.rank(local_rank):{width}}] ",
                    on_exit=supervisor.on_exit,
                    **(calls.options() if calls else {}),
                )
                workers.append(worker)
                enlist(worker.pid)
                if calls:
                    calls.began(worker)
            return supervisor.run(workers)
        finally:
            for worker in workers:
                worker.finish()


def _secret_of(job, environ):
    given = given_secret(environ)
    if job.num_nodes == 1:
        return given or secrets.token_hex(32).encode()
    if given is None:
        raise ConfigurationError(
            "TFDIST_SECRET or TFDIST_SECRET_FILE is expected with --nodes above 1, the same on all nodes. "
            "Received: neither. Draw one by `python -c 'import secrets; print(secrets.token_hex(32))'`."
        )
    return given


def _open_store(stack, job, secret):
    """Returns the store's address, and a function that reads the workers' reports from it."""
    if job.node_rank > 0:
        return job.address, lambda: _ask_for_reports(job.address, secret)
    host, port = parse_address(job.address, "--address") if job.address else ("127.0.0.1", 0)
    server = stack.enter_context(StoreServer(host, port, secret=secret))
    return server.address, lambda: _by_rank(server.items(report.KEY))


def _ask_for_reports(address, secret):
    try:
        with StoreClient(address, secret, timeout=0.3) as store:
            return _by_rank({key: store.try_get(key) for key in store.keys(report.KEY)})
    except TfdistError:
        return {}


def _by_rank(items):
    ranks = {key[len(report.KEY) :]: report.parse(value) for key, value in items.items()}
    return {int(rank): told for rank, told in ranks.items() if rank.isdecimal() and told}


@contextlib.contextmanager
def _warden():
    """Yields a function that puts a process group under the warden's eyes; see warden.py."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", _WARDEN],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
    )
    groups = []

    def tell(sign, group):
        with contextlib.suppress(OSError):  # somebody killed it; the job goes on
            process.stdin.write(f"{sign}{group}\n")
            process.stdin.flush()

    def enlist(group):
        groups.append(group)
        tell("+", group)

    try:
        yield enlist
    finally:
        for group in groups:
            tell("-", group)
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.wait()
