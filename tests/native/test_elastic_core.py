"""The C++ tests of elastic groups, built without sanitizers; `make sanitize` runs them under them."""

import shutil

import pytest

from tests.native.sanitize import build_and_run


@pytest.mark.slow  # compiles the core
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here to build the C++ test with")
def test_elastic_groups_in_cpp():
    (result,) = build_and_run("none", "elastic_test")
    assert result.returncode == 0, result.stderr
    assert "all checks held" in result.stdout
