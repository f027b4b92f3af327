"""The C++ test of the reductions, run in every instruction set that this processor has."""

import re
import shutil

import pytest

from tests.native.sanitize import build_and_run

# A set that is not there gives way to the best one that is.
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


@pytest.mark.slow  # compiles the core
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here to build the C++ test with")
def test_reduce_in_cpp():
    environments = [{"TFDIST_INSTRUCTION_SET": name} for name in INSTRUCTION_SETS]
    results = build_and_run("none", "reduce_test", environments)
    used = []
    for result in results:
        assert result.returncode == 0, result.stderr
        used += re.findall(r"all checks held with (\w+)", result.stdout)
    assert used[0] == "baseline"
    assert len(used) == len(INSTRUCTION_SETS) and set(used) <= set(INSTRUCTION_SETS)
