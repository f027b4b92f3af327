import subprocess
import sys

import pytest

from tfdist.cluster import host, resolve, variables
from tfdist.errors import ConfigurationError


def _python(code, **environ):
    run = subprocess.run([sys.executable, "-c", code], env={**environ}, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture
def path():
    return {"PYTHONPATH": ":".join(entry for entry in sys.path if entry)}


def test_public_names_read_the_process_environment(path):
    place = {"TFDIST_RANK": "2", "TFDIST_WORLD_SIZE": "4", "TFDIST_LOCAL_RANK": "0", "TFDIST_LOCAL_WORLD_SIZE": "2",
             "TFDIST_STORE": "10.0.0.1:1", "TFDIST_SECRET": "s", "TFDIST_ADDRESS": "10.0.0.2"}  # fmt: skip
    code = "import tfdist as t; print(t.rank(), t.world_size(), t.size(), t.local_rank(), t.is_chief())"
    assert _python(code, **path, **place) == "2 4 4 0 False"
    assert _python(code, **path) == "0 1 1 0 True"


def test_cluster_and_launcher_import_neither_tensorflow_nor_numpy(path):
    code = (
        "import sys, tfdist.cluster, tfdist.cluster.store, tfdist.cluster.environments\n"
        "print([name for name in ('tensorflow', 'keras', 'numpy') if name in sys.modules])"
    )
    assert _python(code, **path) == "[]"


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "inf"])
def test_timeout_is_a_number_of_seconds(text):
    with pytest.raises(ConfigurationError, match="TFDIST_TIMEOUT is expected to be a number of seconds > 0"):
        variables.timeout({"TFDIST_TIMEOUT": text})


@pytest.mark.parametrize("text", ["0", "17", "two"])
def test_a_wrong_number_of_sockets_is_named(text):
    with pytest.raises(
        ConfigurationError, match=f"TFDIST_SOCKETS_PER_PEER is expected to be .*TFDIST_SOCKETS_PER_PEER='?{text}"
    ):
        variables.sockets_per_peer({"TFDIST_SOCKETS_PER_PEER": text})
    assert variables.sockets_per_peer({}) == 1 and variables.sockets_per_peer({"TFDIST_SOCKETS_PER_PEER": "16"}) == 16


@pytest.mark.parametrize("text", ["-1", "0.01", "1e9", "soon", "nan"])
def test_a_heartbeat_that_makes_no_sense_is_named(text):
    with pytest.raises(
        ConfigurationError, match=f"TFDIST_HEARTBEAT_SECONDS is expected to be .* 0.1 to 3600.*'{text}'"
    ):
        variables.heartbeat_seconds({"TFDIST_HEARTBEAT_SECONDS": text})
    assert variables.heartbeat_seconds({}) == 2.0
    assert variables.heartbeat_seconds({"TFDIST_HEARTBEAT_SECONDS": "0"}) == 0


def test_timeout_reaches_the_cluster():
    assert resolve({}).timeout is None
    assert resolve({"TFDIST_TIMEOUT": "1.5"}).timeout == 1.5
    assert resolve({"TFDIST_TIMEOUT": "2", "RANK": "0", "WORLD_SIZE": "1"}).timeout == 2.0


def test_own_address_skips_loopback(monkeypatch):
    monkeypatch.setattr(host, "_resolve", lambda name: "127.0.1.1")
    monkeypatch.setattr(host, "_interface_towards", {"a": "127.0.0.1", "192.0.2.1": "10.0.0.7"}.get)
    assert host.own_address({}, name="me", towards="a") == "10.0.0.7"
    monkeypatch.setattr(host, "_interface_towards", lambda name: None)
    with pytest.raises(ConfigurationError, match="an address that other hosts can reach.*Set TFDIST_ADDRESS"):
        host.own_address({}, name="me", towards="a")
    assert host.own_address({"TFDIST_ADDRESS": "10.9.9.9"}, name="me") == "10.9.9.9"


def test_variables_of_a_job_that_recovers():
    assert variables.recover({}) and not variables.recover({}, default=False)
    assert variables.recover({"TFDIST_RECOVER": "1"}, default=False) and not variables.recover({"TFDIST_RECOVER": "0"})
    with pytest.raises(
        ConfigurationError, match="TFDIST_RECOVER is expected to be 0 or 1. Received: TFDIST_RECOVER='on'"
    ):
        variables.recover({"TFDIST_RECOVER": "on"})
    numbers = {"TFDIST_MIN_WORKERS": "3", "TFDIST_INCARNATION": "2", "TFDIST_INITIAL_WORKERS": "5"}
    assert (variables.min_workers({}), variables.incarnation({}), variables.initial_workers({}, 7)) == (1, 0, 7)
    assert variables.min_workers(numbers) == 3 and variables.min_workers({"TFDIST_MIN_WORKERS": "0"}) == 1
    assert variables.incarnation(numbers) == 2 and variables.initial_workers(numbers, 7) == 5
