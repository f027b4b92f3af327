"""Arrows point down: what must not import TensorFlow does not, seen in a process of its own."""

import subprocess
import sys

import pytest

WITHOUT_TENSORFLOW = [
    "tfdist",
    "tfdist.checkpoint",
    "tfdist.cluster",
    "tfdist.collectives",
    "tfdist.comm",
    "tfdist.errors",
    "tfdist.launch.cli",
    "tfdist.observe.activity",
    "tfdist.simulate.command",
    "tfdist.staleness",
    "tfdist.testing",
]


@pytest.mark.parametrize("module", WITHOUT_TENSORFLOW)
def test_imports_no_tensorflow(module):
    code = f"import sys, {module}; sys.exit(any(n in sys.modules for n in ('tensorflow', 'keras')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, f"{module} imports TensorFlow or Keras. {result.stderr}"


@pytest.mark.parametrize("module", ["tfdist.collectives"])
def test_plans_need_no_numpy(module):
    code = f"import sys, {module}; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_public_names_exist():
    import tfdist

    assert "RingAllReduceStrategy" in dir(tfdist) and tfdist.__version__
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tfdist.nonsense  # noqa: B018
