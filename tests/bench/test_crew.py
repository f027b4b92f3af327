"""A crew's processes, from their start to their end."""

import contextlib
import os
import sys
import time

import pytest

from tfdist.bench import crew as crews
from tfdist.bench import peers

RANK = "from serve import answer\nimport os\nanswer(0, os)\n"
SERVER = "import pathlib, signal, sys\npathlib.Path(sys.argv[1]).write_text('1')\nsignal.pause()\n"


def _launches(folder, server=SERVER):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(peers.PROGRAMS), *filter(None, sys.path)])}
    rank = crews.Launch((sys.executable, "-c", RANK), environment)
    told = str(folder / "started")
    return [rank, crews.Launch((sys.executable, "-c", server, told), environment, is_server=True)]


def test_a_server_reports_nothing_and_is_told_to_end(tmp_path):
    with contextlib.closing(crews.Crew("one", _launches(tmp_path), 1, {"cores": [[]]})) as crew:
        (server,) = crew._servers
        assert list(crew.pids) == [0] and server.poll() is None
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    assert server.returncode == -15 and crew._processes[0].returncode == 0


def test_a_server_that_ends_is_a_failure(tmp_path):
    launches = _launches(tmp_path, "import sys\nsys.exit('no memory')\n")
    with pytest.raises(crews.CrewFailedError, match="ended with exit code 1. Its last lines: no memory"):
        crews.Crew("one", launches[1:], 1, {"cores": [[]]})
