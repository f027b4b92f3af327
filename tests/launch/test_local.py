import os
import signal
import subprocess
import sys
import threading
import time

import functions_to_run
import pytest

from tfdist.errors import ConfigurationError
from tfdist.launch import local


@pytest.fixture(autouse=True)
def nothing_is_left():
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    yield
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    deadline = time.monotonic() + 5
    while set(threading.enumerate()) - threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_results_come_by_rank():
    assert local.run(functions_to_run.place, 3, ("a",)) == [("a", rank, 3) for rank in range(3)]


def test_it_may_be_called_from_a_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(local.run(functions_to_run.place, 2, ("a",))))
    thread.start()
    thread.join(timeout=30)
    assert results == [[("a", 0, 2), ("a", 1, 2)]]


def test_large_results_and_arguments_pass():
    assert local.run(functions_to_run.large, 1) == [bytes(5_000_000)]
    assert local.run(functions_to_run.place, 1, (bytes(5_000_000),)) == [(bytes(5_000_000), 0, 1)]


def test_a_failure_is_raised_with_its_traceback():
    with pytest.raises(local.WorkersFailedError, match="(?s)rank 1 of 2 failed.*ValueError: rank 1 does not like it$"):
        local.run(functions_to_run.fail)


def test_ctrl_c_is_raised_when_all_have_stopped():
    with pytest.raises(KeyboardInterrupt):
        local.run(functions_to_run.interrupt_parent, 1, environ={**os.environ, "PARENT": str(os.getpid())})


def test_what_cannot_be_imported_is_refused():
    def nested():
        pass

    for function in (nested, lambda: 0, "text", type("Local", (), {})()):
        with pytest.raises(ConfigurationError, match="fn is expected to be a function that a new process can import"):
            local.run(function)


def test_other_mistakes_are_refused():
    with pytest.raises(ConfigurationError, match="num_workers is expected to be an integer >= 1"):
        local.run(functions_to_run.place, 0)
    with pytest.raises(ConfigurationError, match="args are expected to be picklable. Received: .*lambda"):
        local.run(functions_to_run.place, 1, (lambda: 0,))


def test_it_is_found_by_its_public_name():
    code = "import tfdist; print(tfdist.launch.local.run.__name__)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "run\n", run.stderr
