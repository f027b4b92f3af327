"""A user's mistake in a script: one line that names the place, exit code 2; any other error is shown as ever."""

import subprocess
import sys

import pytest


def run(tmp_path, body):
    script = tmp_path / "train.py"
    script.write_text("import tfdist\n" + body)
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path
    ), script


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("tfdist.comm.Group(3, 2)", "rank=3, world_size=2"),
        ("import numpy\ntfdist.comm.Group(0, 1).all_reduce(numpy.ones(2, 'uint8'))", "Received: dtype=uint8"),
        ("import os\nos.environ['TFDIST_RANK'] = '1'\ntfdist.rank()", "TFDIST_RANK without"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, body, text):
    result, script = run(tmp_path, body)
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and text in lines[0]
    assert lines[0].startswith(f"{script}:{len(body.splitlines()) + 1}: ConfigurationError: ")


def test_other_errors_keep_their_traceback(tmp_path):
    result, _ = run(tmp_path, "raise ValueError('mine')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ValueError: mine" in result.stderr
