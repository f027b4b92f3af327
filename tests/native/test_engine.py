"""The C++ test of the engine, built without sanitizers; `make sanitize` runs it under them."""

import shutil

import pytest

from tests.native.sanitize import build_and_run


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here to build the C++ test with")
def test_engine_in_cpp():
    (result,) = build_and_run("none")
    assert result.returncode == 0, result.stderr
    assert "all checks held" in result.stdout
