"""Hostile bytes on every native connection, under sanitizers: a sample of what `make fuzz` runs for minutes."""

import shutil
import subprocess

import pytest

from tests.fuzz import native

_RUNS = {"engine": 1000, "server": 2000, "client": 2000}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return native.build(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow  # compiles the core
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here to build the fuzz targets with")
@pytest.mark.parametrize("target", native.TARGETS)
def test_a_hostile_peer_does_no_harm(programs, target):
    arguments = [programs[target], "--runs", str(_RUNS[target]), *native.corpus(target)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "inputs were survived" in done.stdout
