"""Starts the workers of this host: serves the store, draws the secret, leaves nothing behind."""

import contextlib
import os
import secrets
import subprocess
import sys

from tfdist.cluster.address import parse_address
from tfdist.cluster.secret import given_secret
from tfdist.cluster.store import StoreClient, StoreServer
from tfdist.errors import ConfigurationError, TfdistError
from tfdist.launch import report
from tfdist.launch.output import Output
from tfdist.launch.resources import available_cores, divide_cores
from tfdist.launch.supervisor import Supervisor
from tfdist.launch.worker import Worker

_WARDEN = os.path.join(os.path.dirname(__file__), "warden.py")


def start(job, *, environ=os.environ, stdout=None, stderr=None):
    """Runs a job on this host to its end.

    Call it from a thread that outlives it (it is this thread's end that ends the workers).

    Args:
      job: a `Job`.
      environ: the variables that the workers inherit.
      stdout, stderr: text streams for their output; this process's by default.

    Returns:
      The exit code: 0, or that of the worker that failed first (128 + the number of a signal).

    Raises:
      ConfigurationError: a job of several hosts has no secret.
      RendezvousError: the store cannot listen at the job's address.
    """
    stdout, stderr = stdout or sys.stdout, stderr or sys.stderr
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
                workers.append(
                    Worker(
                        job.rank(local_rank),
                        job.command,
                        job.environment(local_rank, address, secret, environ),
                        cores=cores[local_rank],
                        output=output,
                        prefix=f"[{job.rank(local_rank):{width}}] ",
                        on_exit=supervisor.on_exit,
                    )
                )
                enlist(workers[-1].pid)
            exit_code, text = supervisor.run(workers)
        finally:
            for worker in workers:
                worker.finish()
        if text:
            output.write("stderr", f"{text}\n".encode())
        return exit_code


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
