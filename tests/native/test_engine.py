"""The C++ tests of the engine, built without sanitizers; `make sanitize` runs them under them."""

import shutil

import pytest

from tests.native.sanitize import build_and_run


@pytest.mark.slow  # compiles the core
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here to build the C++ test with")
@pytest.mark.parametrize("program", ["engine_test", "stream_test"])
def test_engine_in_cpp(program):
    (result,) = build_and_run("none", program)
    assert result.returncode == 0, result.stderr
    assert "all checks held" in result.stdout
