"""Starts the workers and servers of this host: serves the store, draws the secret, leaves nothing behind."""

import contextlib
import os
import secrets
import signal
import sys
import time

from tfdist.cluster.secret import given_secret
from tfdist.errors import ConfigurationError, TfdistError
from tfdist.launch import function, summary
from tfdist.launch.crew import Crew
from tfdist.launch.events import ADD_WORKER, FORWARDED, Events
from tfdist.launch.job import Job
from tfdist.launch.job_store import JobStore
from tfdist.launch.output import Output
from tfdist.launch.recovery import Recovery
from tfdist.launch.supervisor import Supervisor


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
        store = stack.enter_context(contextlib.closing(JobStore(job, secret, environ)))
        events = Events()
        output = Output(stdout, stderr, events.on_broken_output)
        stack.enter_context(events.of_signals((*FORWARDED, ADD_WORKER) if job.recovers else FORWARDED))
        begin = time.monotonic()
        try:
            with Crew(job, store_address=store.address, secret=secret, environ=environ, output=output,
                      on_exit=events.on_exit, calls=calls) as crew:  # fmt: skip
                recovery = Recovery(job, store, crew, output.say)
                result = Supervisor(job, store, crew, events, recovery).run()
        finally:
            store.tell_ended()
        if job.summary and result[0] == 0 and job.node_rank == 0:
            output.write("stdout", summary.render(store.summaries(), time.monotonic() - begin).encode())
        return result


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
