"""Without TensorFlow, or with too old a one, the first use of a strategy says in one line what to install."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BOTH = "Run `pip install tensorflow-cpu` (CPU), or `pip install tensorflow` (`tensorflow[and-cuda]` for NVIDIA GPUs)."
HIDDEN = """
import importlib.abc, importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "tensorflow" else find_spec(name, package)
"""
FAKE = (
    "import sys, types; sys.modules['tensorflow'] = fake = types.ModuleType('tensorflow'); fake.__spec__ = object()\n"
)


@pytest.mark.parametrize("name", ["RingAllReduceStrategy", "strategy", "use"])
@pytest.mark.parametrize(
    "prelude, received",
    [
        (HIDDEN, "Received: no module 'tensorflow'."),
        (FAKE + "fake.__version__ = '2.15.1'\n", "Received: TensorFlow 2.15.1."),
        (FAKE + "fake.__path__ = ['/site-packages/tensorflow']\n", "Received: an empty 'tensorflow' at"),
    ],
)
def test_says_what_to_install(prelude, received, name):
    script = f"{prelude}import tfdist\ntry:\n  tfdist.{name}\nexcept tfdist.errors.ConfigurationError as error:\n  print(error)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("tfdist's strategies need TensorFlow >= 2.16. " + received), result.stderr
    assert result.stdout.strip().endswith(BOTH)
    assert len(result.stdout.splitlines()) == 1
