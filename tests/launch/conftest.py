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
