import textwrap

import pytest


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "script.py"
        path.write_text("import os, signal, subprocess, sys, time\n"
                        "rank = int(os.environ['TFDIST_RANK'])\n" + textwrap.dedent(text))  # fmt: skip
        return path

    return write


@pytest.fixture
def server_script(tmp_path):
    """Writes what runs in the place of a parameter server."""

    def write(text):
        path = tmp_path / "server.py"
        path.write_text("import os, signal, sys, time\n" + textwrap.dedent(text))
        return path

    return write
