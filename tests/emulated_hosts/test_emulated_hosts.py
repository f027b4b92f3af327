"""Ranks on hosts of their own, with a network between them: one `tfdist run` each."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulated_hosts import hosts as emulated
from tests.launch.launching import _environment

WORKER = Path(__file__).with_name("worker.py")
_TIMEOUT_SECONDS = 100
_PORT = 29400  # free: the namespace is new

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module", autouse=True)
def possible():
    reason = emulated.why_not()
    if reason:
        pytest.skip(f"emulated hosts: {reason}")


def start(prefix, index, count, environment):
    command = (
        sys.executable, "-m", "tfdist", "run", "-n", "1", "--nodes", str(count), "--node-rank", str(index),
        "--address", f"{emulated.address(0)}:{_PORT}", str(WORKER),
    )  # fmt: skip
    return subprocess.Popen(
        [*prefix(index), *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("count", [2, 4])
def test_sums_across_hosts(count):
    environment = _environment(TFDIST_SECRET=secrets.token_hex(16), TFDIST_TIMEOUT="60")
    with emulated.hosts(count, "1gbit", "0.5ms") as prefix:
        runs = [start(prefix, index, count, environment) for index in range(count)]
        try:
            outputs = [run.communicate(timeout=_TIMEOUT_SECONDS)[0] for run in runs]
        finally:
            for run in runs:
                if run.poll() is None:
                    run.kill()
                    run.wait(timeout=10)
    assert [run.returncode for run in runs] == [0] * count, outputs
    for index, output in enumerate(outputs):
        assert f"sums of rank {index} of {count} are right" in output


def test_nothing_is_left_of_the_hosts():
    with pytest.raises(ZeroDivisionError), emulated.hosts(2, "1gbit", "0.5ms"):
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=10, check=True).stdout
        assert f"tfd{os.getpid()}x0" in listed
        raise ZeroDivisionError
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=10, check=True).stdout
    assert f"tfd{os.getpid()}x" not in listed
