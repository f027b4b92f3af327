"""Jobs whose connections are encrypted, and what becomes of their secret."""

import shutil

import pytest
from launching import tfdist

SECRET = "5ecret-" * 9
SCRIPT = """
import glob, os, socket
import numpy as np
from tfdist.comm.default import default_group

for path in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        with open(path, "rb") as file:
            assert os.environ["TFDIST_SECRET"].encode() not in file.read(), path
    except OSError:
        pass  # it has ended
group = default_group()
values = np.full(100_003, group.rank + 1.0)
print(f"sum {group.all_reduce(values)[100_002]:g} tls={os.environ.get('TFDIST_TLS', '')}", flush=True)
if SAYS:
    raise ValueError("the worker fails")
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(f"SAYS = False\n{SCRIPT}")
    return path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to draw certificates with")
@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_a_job_with_tls(script, transport):
    done = tfdist("run", "-n2", "--tls", script, TFDIST_SECRET=SECRET, TFDIST_TRANSPORT=transport)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sum 3 tls=1") == 2
    assert SECRET not in done.stdout + done.stderr


def test_a_job_that_fails_does_not_tell_the_secret(script):
    script.write_text(f"SAYS = True\n{SCRIPT}")
    done = tfdist("run", "-n2", script, TFDIST_SECRET=SECRET)
    assert done.returncode == 1 and "the worker fails" in done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_files_without_tls(script):
    done = tfdist("run", "--tls-cert", "a.pem", script)
    assert "--tls is expected with --tls-cert, --tls-key and --tls-ca" in done.stderr


def test_files_that_are_none(script):
    done = tfdist("run", "--tls", "--tls-cert", "a.pem", "--tls-key", "a.key", script)
    assert done.returncode == 2 and "are expected to name a certificate" in done.stderr
